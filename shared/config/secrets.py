"""Secrets: which keys hold one, and how a process reads it. They are never shown, stored or passed on by the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, SecretStr

from shared.config.models import Config
from shared.errors import ConfigError

LONGEST = 4096  # bytes of a file that holds a secret


def _keys() -> frozenset[str]:
    sections = {
        name: field.annotation
        for name, field in Config.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }
    return frozenset(
        f"{section}.{name}"
        for section, model in sections.items()
        for name, field in model.model_fields.items()
        if _holds_secret(field.annotation)
    )


def _holds_secret(annotation: Any) -> bool:
    return annotation is SecretStr or any(_holds_secret(part) for part in get_args(annotation))


SECRET_KEYS = _keys()


def get(config: Config, key: str) -> SecretStr | None:
    """The secret that the configuration itself holds under a key of SECRET_KEYS."""
    section, name = key.split(".")
    found: SecretStr | None = getattr(getattr(config, section), name)
    return found


def put(config: Config, key: str, value: SecretStr | None) -> Config:
    """The same configuration with another secret under a key of SECRET_KEYS."""
    section, name = key.split(".")
    changed = getattr(config, section).model_copy(update={name: value})
    return config.model_copy(update={section: changed})


def read(config: Config, key: str) -> str | None:
    """The secret of a key of SECRET_KEYS, from the configuration or from the file that `<key>_file` names.

    Raises:
        ConfigError: the file cannot be read, is empty, or holds more than one line.

    """
    value = get(config, key)
    if value is not None:
        return value.get_secret_value()
    section, name = key.split(".")
    path: Path | None = getattr(getattr(config, section), f"{name}_file")
    return None if path is None else _from_file(path, f"{key}_file")


def excluded() -> dict[str, Any]:
    """What `model_dump` has to leave out."""
    tree: dict[str, Any] = {}
    for key in SECRET_KEYS:
        section, name = key.split(".")
        tree.setdefault(section, set()).add(name)
    return tree


def _from_file(path: Path, key: str) -> str:
    try:
        with path.open("rb") as file:
            text = file.read(LONGEST + 1).decode().strip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{key} {path}: cannot be read: {reason}") from None
    if not text or "\n" in text or len(text) > LONGEST:
        raise ConfigError(f"{key} {path}: expected one line that is not empty, of at most {LONGEST} bytes")
    return text
