"""Reads the configuration: one YAML file, then the environment, then `--set`; the later the stronger."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from shared.config.explain import cut, explain
from shared.config.models import Config
from shared.config.secrets import SECRET_KEYS, excluded
from shared.errors import ConfigError

ENV_PREFIX = "TRUSTBATCH__"


def load_config(
    path: Path | None = None, overrides: Sequence[str] = (), environ: dict[str, str] | None = None
) -> Config:
    """Reads, merges and validates.

    Args:
        path: YAML file, or None for the defaults alone.
        overrides: "a.b=value" strings; the value is read as YAML.
        environ: defaults to os.environ; `TRUSTBATCH__LEARNER__STEPS=10` sets learner.steps.

    Raises:
        ConfigError: names every offending key, what was given and what is allowed.

    """
    merged: dict[str, Any] = _read_yaml(path) if path else {}
    for dotted, value in _from_environment(os.environ if environ is None else environ):
        _assign(merged, dotted, value)
    for dotted, value in parse_overrides(overrides):
        _assign(merged, dotted, value)
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(explain(error, path)) from None


def parse_overrides(overrides: Sequence[str]) -> list[tuple[str, Any]]:
    """("a.b=3",) -> [("a.b", 3)]. Raises ConfigError where there is no '=' or the value is not YAML."""
    pairs = []
    for item in overrides:
        key, separator, text = item.partition("=")
        if not separator or not key.strip():
            raise ConfigError(f"--set {cut(repr(item))}: write it as key.subkey=value, for example learner.steps=200")
        pairs.append((key.strip(), _yaml_value(f"--set {key}", text)))
    return pairs


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML, without secrets; `load_config` reads it back."""
    plain = config.model_dump(mode="json", exclude=excluded())
    return yaml.safe_dump(plain, sort_keys=False, width=100)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        loaded = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; ready-made ones are in deploy/configs/") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {_problem(error)}") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path}: expected keys and values at the top level, found a {type(loaded).__name__}")
    return loaded


def _from_environment(environ: os._Environ[str] | dict[str, str]) -> list[tuple[str, Any]]:
    given = [
        (name[len(ENV_PREFIX) :].lower().replace("__", "."), name, text)
        for name, text in sorted(environ.items())
        if name.startswith(ENV_PREFIX)
    ]
    return [(key, _secret(text) if key in SECRET_KEYS else _yaml_value(name, text)) for key, name, text in given]


def _secret(text: str) -> Any:
    """A secret as it stands, unless it is quoted: 0123, 12e4 and `no` are passwords, not numbers or truth values."""
    return _yaml_value("a secret", text) if text[:1] in ("'", '"') else text or None


def _yaml_value(name: str, text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{cut(name)}: not a valid YAML value: {_problem(error)}") from None
    if isinstance(value, str) and text.strip()[:1] not in ("'", '"'):  # YAML 1.1 reads 3e-4 as a string
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _problem(error: yaml.YAMLError) -> str:
    """What is wrong and where, without the lines themselves: any file may be given by mistake."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{cut(error.problem or 'unreadable')}, line {mark.line + 1}, column {mark.column + 1}"
    return cut(str(error).splitlines()[0])


def _assign(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, leaf = dotted.split(".")
    for name in parents:
        child = tree.setdefault(name, {})
        if not isinstance(child, dict):
            raise ConfigError(f"{cut(dotted)}: {cut(name)} is a value here, not a section")
        tree = child
    tree[leaf] = value
