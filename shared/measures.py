"""What there is to see over time: every number of a step's record and of a rollout server, with unit and meaning.

Names, units and texts of a step's numbers are those of its metrics (shared/metrics/table.py): `field` is the name.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import get_args, get_origin, get_type_hints

from shared.metrics.table import PARTS, STEP
from shared.records import StepRecord

SERVERS = "servers"  # the first part of the names of what rollout servers say of themselves


@dataclass(frozen=True)
class Measure:
    """One number over time."""

    name: str
    unit: str  # '' for a plain number; share: in [0, 1]
    text: str
    labelled: bool  # one of many: by staleness, server, arm ...


_OTHERS = {
    "policy_version": ("versions", "Newest version when the batch was consumed."),
    "groups": ("groups", "Groups of the step."),
    "trajectories": ("", "The policy's own completions."),
    "tokens": ("tokens", "Trained tokens."),
    "wait_s": ("seconds", "Waited for groups."),
    "compute_s": ("seconds", "Forward, backward and optimizer."),
    "publish_s": ("seconds", "Writing and announcing a version."),
    "backlog_groups": ("groups", "In the stream when the batch was taken, not yet applied."),
    "backlog_bytes": ("bytes", "Of all groups in Redis then."),
    "backlog_oldest_s": ("seconds", "Since the oldest of these was appended."),
    "backlog_drain_s": ("seconds", "How long they last at the pace of the newest steps."),
    "lags": ("groups", "Groups by the lag that was asked for."),
    "settings": ("", "What operators may change while the run goes on."),
    "log_ratio_counts": ("tokens", "Tokens by their log ratio; `/v1/histograms` has the edges."),
}
_SERVER = {
    "served_version": ("versions", "Version served, proven."),
    "lag_asked": ("versions", "Versions behind the newest that it is asked to serve."),
    "lag_served": ("versions", "Versions behind the newest that it serves."),
    "floor_mean_nats": ("nats", "Mean |difference| between the served version and its probe."),
    "floor_max_nats": ("nats", "Largest difference between the served version and its probe."),
    "floor_token_ess": ("share", "token_ess of the probe: that of staleness 0."),
    "in_flight": ("groups", "Groups being generated."),
    "busy_share": ("share", "Share of the last minute with groups in flight and the engine not paused."),
    "groups_per_s": ("groups", "Groups appended in a second."),
}
SERVER_NAMES = tuple(_SERVER)
"""Of every rollout server; without a label of all of them."""


def _of_record() -> dict[str, Measure]:
    """Every number of a record, told apart by its type."""
    told = {metric.field: (metric.unit, metric.text) for metric in STEP} | _OTHERS
    found = {}
    for name, hint in _HINTS.items():
        labelled = get_origin(hint) in (dict, list)
        if name not in ("at", "prompt_indices", *_GROUPS) and (labelled or _is_number(hint)):
            found[name] = Measure(name, *told.get(name, ("", "")), labelled)
    return found


def _is_number(hint: object) -> bool:
    return hint in (int, float) or (bool(get_args(hint)) and set(get_args(hint)) <= {int, float, type(None)})


def _holds_several(hint: object) -> bool:
    """True for what has several numbers of each label."""
    return get_origin(hint) in (dict, list) and get_origin(get_args(hint)[-1]) is dict


_HINTS = {field.name: get_type_hints(StepRecord)[field.name] for field in fields(StepRecord)}
_GROUPS = frozenset(name for name, hint in _HINTS.items() if _holds_several(hint))
MEASURES: dict[str, Measure] = {
    **_of_record(),
    **{metric.field: Measure(metric.field, metric.unit, metric.text, True) for metric in PARTS},
    **{f"{SERVERS}.{name}": Measure(f"{SERVERS}.{name}", *told, True) for name, told in _SERVER.items()},
}
"""By name. What a part of a step has beside these has a series too, without unit and text."""


def measure(name: str) -> Measure | None:
    """What a name means; None for one that no series can have."""
    group, _, inner = name.partition(".")
    if name not in MEASURES and group in _GROUPS and inner.isidentifier():
        return Measure(name, "", "", True)
    return MEASURES.get(name)
