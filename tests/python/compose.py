"""Checks that the compose example hangs together: with itself, with the relay's settings, with the image and the app.

Arguments: the directory of the example, the Containerfile.
"""
import os
import sys

import yaml

directory, containerfile = sys.argv[1:]


def read(name):
    with open(os.path.join(directory, name)) as file:
        return file.read()


example = yaml.safe_load(read("compose.yml"))
settings = yaml.safe_load(read("dotcloud.yml"))["mailer"]["config"]
with open(containerfile) as file:
    image = file.read()
services = example["services"]
assert set(services) == {"mailer", "volumes-are-the-relays", "web", "worker"}, set(services)

mounted = {}  # service: place: what is there
for name, service in services.items():
    mounted[name] = {parts[1]: parts[0] for parts in (volume.split(":") for volume in service.get("volumes", []))}
    for source in mounted[name].values():
        there = os.path.exists(os.path.join(directory, source)) if source.startswith(".") else source in example["volumes"]
        assert there, f"{name} mounts {source}"
    for other, condition in service.get("depends_on", {}).items():
        wanted = "service_healthy" if other == "mailer" else "service_completed_successfully"
        assert other in services and condition == {"condition": wanted}, f"{name} waits for {other}"

mailer = services["mailer"]
assert mailer["read_only"] and mailer["cap_drop"] == ["ALL"]
assert os.path.samefile(os.path.join(directory, mailer["build"]["context"], mailer["build"]["dockerfile"]), containerfile)
assert mounted["mailer"][mailer["command"][mailer["command"].index("--config") + 1]] == "./dotcloud.yml"
# Whatever is written lies on a volume, and the health that others wait for is asked by the image.
(volume,) = [line.split()[1] for line in image.splitlines() if line.startswith("VOLUME ")]
assert mounted["mailer"][volume] == "queue" and "\nHEALTHCHECK " in image
assert mounted["mailer"][os.path.dirname(settings["smtp_environment_file"])] == "apps"
# A container whose root is read-only gets no secrets made of variables: the engine could not write them.
assert "secrets" not in mailer and "secrets" not in example
assert set(mailer["environment"]) == {"SMTP_RELAY_PASSWORD", "SMTP_ADMIN_PASSWORD"}
assert all(value.startswith("${") and ":?" in value for value in mailer["environment"].values()), "asked for"
page = settings["smtp_admin_listen"].rsplit(":", 1)[1]
assert mailer["ports"] == [f"127.0.0.1:{page}:{page}"], "the page is for this machine alone"

(user,) = [line.split()[1] for line in image.splitlines() if line.startswith("USER ")]
assert f"chown {user} /queue /apps" in services["volumes-are-the-relays"]["command"][-1]
for name in ("web", "worker"):
    app = services[name]
    assert app["environment"]["ENVIRONMENT_FILE"] == settings["smtp_environment_file"]
    assert mounted[name] == {os.path.dirname(settings["smtp_environment_file"]): "apps"}
    assert all(volume.endswith(":ro") for volume in app["volumes"])
    assert app["user"].split(":")[1] == user.split(":")[1], "it reads by the relay's group"
    assert os.path.exists(os.path.join(directory, app["build"], app["command"][1]))
# By this name the app's settings have the relay.
assert settings["smtp_public_host"] == "mailer"
