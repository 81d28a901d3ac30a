"""What is wrong with a configuration, in the operator's words: the key, what was given, what is allowed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from shared.config.models import Config
from shared.config.secrets import SECRET_KEYS

LONGEST = 80  # characters of a key or a value that are repeated
MOST = 20  # mistakes that are told
_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
_BOUND_ERRORS = {"greater_than_equal", "greater_than", "less_than_equal", "less_than"}


def cut(text: str) -> str:
    """At most LONGEST characters of it."""
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def explain(error: ValidationError, path: Path | None) -> str:
    """All mistakes, one line each."""
    found = error.errors(include_url=False)
    lines = [_line(item) for item in found[:MOST]]
    if len(found) > MOST:
        lines.append(f"... and {len(found) - MOST} more")
    return f"{path}: " * bool(path) + "the configuration cannot be used\n  " + "\n  ".join(lines)


@dataclass(frozen=True)
class _Place:
    """Where in the configuration a mistake is."""

    key: str  # as the operator writes it
    sections: tuple[type[BaseModel], ...]  # what the key's section can be
    kind: str  # which of the kinds that the section can have was chosen, '' where it has none
    others: tuple[type[BaseModel], ...]  # the section's other kinds
    field: FieldInfo | None  # None for a key that is not known


def _line(item: ErrorDetails) -> str:
    place = _find(item["loc"])
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        return f"{cut(place.key)}: {_unknown(place)}"
    if not place.key or place.key in (
        "redis",
        "control_plane",
        "store",
    ):  # a whole section is no help, and may hold a secret
        return f"{place.key}: {message}" if place.key and not message.startswith(place.key) else message
    if place.field is not None and item["type"] not in _BOUND_ERRORS:
        message += _bounds(place.field)
    if place.key in SECRET_KEYS or place.key == "store.url":  # an address may hold a password by mistake
        return f"{place.key}: {message}" + "; put quotes around it" * (item["type"] == "string_type")
    return f"{cut(place.key)}: {message}, not {cut(repr(item['input']))}"


def _unknown(place: _Place) -> str:
    known = ", ".join(sorted(name for section in place.sections for name in section.model_fields))
    name = place.key.rpartition(".")[2]
    if any(name in other.model_fields for other in place.others):
        return f"does not belong to kind {place.kind}, whose keys are {known}"
    return f"unknown key; known here: {known}"


def _bounds(field: FieldInfo) -> str:
    """The field's limits in brackets, (>= 1, <= 64), or nothing."""
    limits = [
        f"{sign} {getattr(rule, name):,}"
        for rule in field.metadata
        for name, sign in _BOUNDS.items()
        if hasattr(rule, name)
    ]
    return f" ({', '.join(limits)})" if limits else ""


def _find(loc: tuple[int | str, ...]) -> _Place:
    """Walks the sections down to a key. pydantic puts the kind of a section between its name and its keys."""
    key: list[str] = []
    sections: tuple[type[BaseModel], ...] = (Config,)
    place = _Place("", sections, "", (), None)
    kind, others = "", tuple[type[BaseModel], ...]()
    for part in loc:
        chosen = tuple(section for section in sections if len(sections) > 1 and _kind_of(section) == part)
        if chosen:
            kind, others = str(part), tuple(section for section in sections if section not in chosen)
            sections = chosen
            continue
        key.append(str(part))
        field = next((s.model_fields[str(part)] for s in sections if str(part) in s.model_fields), None)
        place = _Place(".".join(key), sections, kind, others, field)
        sections, kind, others = _sections_of(field.annotation if field else None), "", ()
    return place


def _kind_of(section: type[BaseModel]) -> Any:
    field = section.model_fields.get("kind")
    return field.default if field else None


def _sections_of(annotation: Any) -> tuple[type[BaseModel], ...]:
    return tuple(
        option
        for option in (annotation, *get_args(annotation))
        if isinstance(option, type) and issubclass(option, BaseModel)
    )
