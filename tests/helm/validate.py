"""Validates objects from standard input by the strict schemas of a version of Kubernetes.

Unknown fields are refused. The schemas of Kubernetes come from `kubernetes-validate`, those of custom resources
from the folder `schemas`.
"""

import json
import re
import sys
from pathlib import Path

import kubernetes_validate
import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

SHIPPED = Path(kubernetes_validate.__file__).with_name("kubernetes-json-schema")
CUSTOM = Path(__file__).with_name("schemas")


class Loader(yaml.SafeLoader):
    """Refuses a duplicate key of a map, which YAML would silently accept."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key}", node.start_mark)
        return super().construct_mapping(node, deep)


def newest() -> str:
    folders = (re.fullmatch(r"v1\.(\d+)\.0-local-strict", folder.name) for folder in SHIPPED.iterdir())
    return f"1.{max(int(found[1]) for found in folders if found)}"


class Schemas:
    """The schemas of one version of Kubernetes, by kind."""

    def __init__(self, version: str):
        self.folder = SHIPPED / f"v{version}.0-local-strict"
        definitions = json.loads((self.folder / "_definitions.json").read_text())
        resource = Resource.from_contents(definitions)
        # The schemas refer to it by these names, with and without the host.
        names = ["https://kubernetes.io/api/_definitions.json", "/api/_definitions.json"]
        self.registry = Registry().with_resources((name, resource) for name in names)
        self.known = {}

    def of(self, thing: dict) -> Draft202012Validator:
        kind, version = thing["kind"].lower(), thing["apiVersion"]
        if (kind, version) not in self.known:
            path = CUSTOM / f"{kind}.json"
            if not path.exists():
                group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", version)
                path = self.folder / f"{kind}-{group}.json"
            schema = json.loads(path.read_text())
            self.known[kind, version] = Draft202012Validator(schema, registry=self.registry)
        return self.known[kind, version]


version = newest() if sys.argv[1] == "newest" else sys.argv[1]
schemas = Schemas(version)
wrong = count = 0
for thing in yaml.load_all(sys.stdin, Loader):
    if thing is None:
        continue
    count += 1
    for error in schemas.of(thing).iter_errors(thing):
        wrong += 1
        print(f"{thing['kind']} {thing['metadata']['name']}: {error.json_path}: {error.message[:300]}")
print(f"{count} objects, Kubernetes {version}")
sys.exit(1 if wrong else 0)
