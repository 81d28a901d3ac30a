"""What `kubectl kustomize` makes of the overlays, and small questions about it."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

import pytest
import yaml

from tests.deploy.composed import ROOT

FOLDER = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("cpu-demo", "single-gpu", "multi-node")
CUSTOM = ("monitoring.coreos.com", "keda.sh")
Object = dict[str, Any]

_SUFFIXES: dict[str, int | Decimal] = {"": 1, "m": Decimal("0.001"), "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SUFFIXES |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


@functools.cache
def objects(overlay: str) -> tuple[Object, ...]:
    """Every object of an overlay; skips the test where there is no kubectl."""
    program = shutil.which("kubectl")
    if program is None:
        pytest.skip("no kubectl on PATH: it renders the overlays, without a cluster")
    command = [program, "kustomize", str(FOLDER / "overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def of_kind(overlay: str, *kinds: str) -> list[Object]:
    return [found for found in objects(overlay) if found["kind"] in kinds]


def named(overlay: str, kind: str, name: str) -> Object:
    [found] = [found for found in of_kind(overlay, kind) if found["metadata"]["name"] == name]
    return found


def name_of(found: Object) -> str:
    return f"{found['kind']}/{found['metadata']['name']}"


def workloads(overlay: str) -> list[Object]:
    """What makes pods."""
    return of_kind(overlay, "Deployment", "StatefulSet", "Job")


def workload(overlay: str, component: str) -> Object:
    [found] = [found for found in workloads(overlay) if found["metadata"]["name"] == component]
    return found


def pod_of(found: Object) -> Object:
    spec: Object = found["spec"]["template"]["spec"]
    return spec


def labels_of(found: Object) -> dict[str, str]:
    labels: dict[str, str] = found["spec"]["template"]["metadata"]["labels"]
    return labels


def containers(found: Object) -> list[Object]:
    return [*pod_of(found).get("initContainers", []), *pod_of(found)["containers"]]


def ports_of(found: Object) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for c in containers(found) for port in c.get("ports", [])}


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """True if a label selector takes these labels."""
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for rule in selector.get("matchExpressions", []):
        has = labels.get(rule["key"])
        good = {
            "In": has in rule.get("values", []),
            "NotIn": has not in rule.get("values", []),
            "Exists": has is not None,
            "DoesNotExist": has is None,
        }[rule["operator"]]
        if not good:
            return False
    return True


def quantity(text: Any) -> Decimal:
    """The number that a quantity stands for. Raises ValueError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([a-zA-Z]*)", str(text))
    if found is None or found[2] not in _SUFFIXES:
        raise ValueError(f"{text!r} is no quantity")
    return Decimal(found[1]) * _SUFFIXES[found[2]]


def unknown_fields(schema: Mapping[str, Any], document: Any, path: str = "") -> Iterator[str]:
    """Fields that a structural schema does not know: the server would drop them without a word."""
    if isinstance(document, dict) and "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        for key, value in document.items():
            known = schema["properties"].get(key, schema.get("additionalProperties") or None)
            if known is None:
                yield f"{path}.{key}"
            elif isinstance(known, dict) and path + key not in ("metadata",):
                yield from unknown_fields(known, value, f"{path}.{key}")
    elif isinstance(document, list) and "items" in schema:
        for index, item in enumerate(document):
            yield from unknown_fields(schema["items"], item, f"{path}[{index}]")
