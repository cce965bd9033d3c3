"""Judges YAML files by a JSON Schema: arguments are the schema, then `good` or `bad` and a file, any number of times."""
import json
import sys

import jsonschema
import yaml

with open(sys.argv[1]) as file:
    schema = json.load(file)
jsonschema.Draft7Validator.check_schema(schema)
validator = jsonschema.Draft7Validator(schema)
wrong = 0
for wanted, path in zip(sys.argv[2::2], sys.argv[3::2]):
    with open(path) as file:
        errors = [error.message for error in validator.iter_errors(yaml.safe_load(file))]
    if bool(errors) == (wanted == "good"):
        wrong += 1
        print(f"{path} should be {wanted}: {errors}", file=sys.stderr)
sys.exit(1 if wrong else 0)
