"""docker-compose.yml as compose reads it: merged, its variables filled in."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import yaml

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docker-compose.yml"
TLS = ROOT / "deploy" / "compose" / "tls.yml"
SCHEMAS = Path(__file__).parent / "schemas"
VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def filled_in(text: str, environ: Mapping[str, str]) -> str:
    """`${NAME:-default}` as compose replaces it."""
    return VARIABLE.sub(lambda found: environ.get(found[1]) or found[2] or "", text)


def composition(path: Path = FILE, **environ: str) -> dict[str, Any]:
    """The whole file."""
    loaded: dict[str, Any] = yaml.safe_load(filled_in(path.read_text(), environ))
    return loaded


def services(profile: str | None = None) -> dict[str, dict[str, Any]]:
    """Services by name; of one profile, as `--profile` chooses them."""
    found: dict[str, dict[str, Any]] = composition()["services"]
    return {
        name: service
        for name, service in found.items()
        if profile is None or profile in service.get("profiles", [profile])
    }


def mistakes(document: Any, schema: str) -> list[str]:
    """What a schema of tests/deploy/schemas has against a document."""
    validator = jsonschema.Draft7Validator(json.loads((SCHEMAS / schema).read_text()))
    return [f"{'.'.join(map(str, error.path))}: {error.message}" for error in validator.iter_errors(document)]


def size(text: str) -> int:
    """Bytes of 512mb, 4G, 1536M, as Redis and compose write them."""
    units = {"k": 10, "m": 20, "g": 30}
    found = re.fullmatch(r"(\d+)([kmg]?)(?:i?b)?", text.lower())
    assert found, text
    return int(found[1]) << units.get(found[2], 0)
