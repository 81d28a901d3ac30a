"""What there is to see over time: every number of a step's record and of a rollout server, with unit and meaning."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args, get_origin, get_type_hints

from shared.metrics import STEP_NAMES, STEP_TEXTS
from shared.records import StepRecord

SERVERS = "servers"  # the first part of the names of what rollout servers say of themselves

Unit = Literal["", "share", "nats", "versions", "tokens", "groups", "seconds", "bytes", "steps"]

_UNITS: dict[str, Unit] = {
    "_nats": "nats",
    "_versions": "versions",
    "_tokens": "tokens",
    "_tokens_mean": "tokens",
    "_share": "share",
    "_ess": "share",
    "_mass": "share",
    "_seconds": "seconds",
    "_bytes": "bytes",
    "_s": "seconds",
}
_OWN_UNITS: dict[str, Unit] = {"tokens": "tokens", "groups": "groups", "step": "steps", "policy_version": "versions"}
_TEXTS = {
    "policy_version": "Newest version when the batch was consumed.",
    "groups": "Groups of the step.",
    "trajectories": "The policy's own completions.",
    "tokens": "Trained tokens.",
    "wait_s": "Waited for groups.",
    "compute_s": "Forward, backward and optimizer.",
    "publish_s": "Writing and announcing a version.",
    "lags": "Groups by the lag that was asked for.",
}

SERVER_MEASURES: dict[str, tuple[Unit, str]] = {
    "served_version": ("versions", "Version served, proven; -1: none."),
    "lag_asked": ("versions", "Versions behind the newest that it is asked to serve."),
    "lag_served": ("versions", "Versions behind the newest that it serves."),
    "floor_mean_nats": ("nats", "Mean |difference| between the served version and its probe."),
    "floor_max_nats": ("nats", "Largest difference between the served version and its probe."),
    "floor_token_ess": ("share", "token_ess of the probe: that of staleness 0."),
    "in_flight": ("groups", "Groups being generated."),
    "groups_per_s": ("groups", "Groups appended in a second."),
}
"""Of every rollout server; without a label of all of them."""


@dataclass(frozen=True)
class Measure:
    """One number over time."""

    name: str
    unit: Unit
    text: str
    labelled: bool  # one of many: by staleness, server, arm ...


def measures() -> dict[str, Measure]:
    """Every number that has one value a step or server, and every name of labelled ones that may stand before a dot."""
    return dict(_MEASURES)


def measure(name: str) -> Measure | None:
    """What a name means; None for one that no series can have. `by_staleness.token_ess` is token_ess of its parts."""
    group, dot, inner = name.partition(".")
    if not dot:
        found = _MEASURES.get(name)
        return found if name not in _GROUPS else None
    if group == SERVERS:
        return _MEASURES.get(name)
    of = _MEASURES.get(inner)
    if group not in _GROUPS or not inner.isidentifier():
        return None
    return Measure(name, of.unit if of else _unit(inner), of.text if of else "", True)


def _unit(name: str) -> Unit:
    found = [suffix for suffix in _UNITS if name.endswith(suffix)]
    return _OWN_UNITS.get(name) or (_UNITS[max(found, key=len)] if found else "")


def _is_number(hint: object) -> bool:
    return hint in (int, float) or (bool(get_args(hint)) and set(get_args(hint)) <= {int, float, type(None)})


def _of_record() -> dict[str, Measure]:
    hints = get_type_hints(StepRecord)
    found = {}
    for field in fields(StepRecord):
        name, hint = field.name, hints[field.name]
        unit = _unit(STEP_NAMES.get(name, name)) or _unit(name)
        text = STEP_TEXTS.get(name) or _TEXTS.get(name, "")
        if name in ("at", "prompt_indices") or not (_is_number(hint) or get_origin(hint) in (dict, list)):
            continue
        found[name] = Measure(name, unit, text, get_origin(hint) in (dict, list))
    return found


def _groups() -> frozenset[str]:
    """Fields that hold several numbers of each label."""
    hints = get_type_hints(StepRecord)
    nested = (name for name, hint in hints.items() if get_origin(hint) in (dict, list))
    return frozenset(name for name in nested if get_origin(get_args(hints[name])[-1]) is dict)


_GROUPS = _groups()
_MEASURES = _of_record() | {
    f"{SERVERS}.{name}": Measure(f"{SERVERS}.{name}", unit, text, True)
    for name, (unit, text) in SERVER_MEASURES.items()
}
