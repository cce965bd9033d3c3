"""Checks the manifests by Kubernetes' own schemas, and that what they name is there.

Arguments: the manifests, the ServiceMonitor, where to write the ConfigMap's dotcloud.yml. Prints the keys of the Secret.
"""
import sys

import kubernetes_validate
import yaml

with open(sys.argv[1]) as file:
    manifests = list(yaml.safe_load_all(file))
with open(sys.argv[2]) as file:
    monitor = yaml.safe_load(file)
for manifest in manifests:
    kubernetes_validate.validate(manifest, "1.33", strict=True)
found = {manifest["kind"]: manifest for manifest in manifests}
assert sorted(found) == ["ConfigMap", "Service", "StatefulSet"], sorted(found)

template = found["StatefulSet"]["spec"]["template"]
pod, labels = template["spec"], template["metadata"]["labels"]
container = pod["containers"][0]
ports = {port["name"] for port in container["ports"]}
assert found["StatefulSet"]["spec"]["selector"]["matchLabels"] == labels
assert found["Service"]["spec"]["selector"] == labels
assert {port["targetPort"] for port in found["Service"]["spec"]["ports"]} <= ports
for probe in ("readinessProbe", "livenessProbe", "startupProbe"):
    assert container[probe]["httpGet"]["port"] in ports, probe
volumes = {volume["name"] for volume in pod["volumes"]}
volumes |= {claim["metadata"]["name"] for claim in found["StatefulSet"]["spec"]["volumeClaimTemplates"]}
assert {mount["name"] for mount in container["volumeMounts"]} == volumes
assert container["securityContext"]["readOnlyRootFilesystem"] and pod["securityContext"]["runAsNonRoot"]

assert monitor["kind"] == "ServiceMonitor" and monitor["apiVersion"] == "monitoring.coreos.com/v1"
assert monitor["spec"]["selector"]["matchLabels"].items() <= found["Service"]["metadata"]["labels"].items()
service_ports = {port["name"] for port in found["Service"]["spec"]["ports"]}
assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= service_ports

settings = found["ConfigMap"]["data"]["dotcloud.yml"]
with open(sys.argv[3], "w") as file:
    file.write(settings)
for line in settings.splitlines():
    if "/run/secrets/outpost/" in line:
        print(line.rsplit("/", 1)[1])
