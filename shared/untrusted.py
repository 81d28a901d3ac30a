"""Values that other processes wrote to the control state: taken as far as they are what they should be.

A rollout server may write its heartbeat, events and evaluation results. Whoever reads them shows less where one
of these is damaged, and never fails.
"""

from __future__ import annotations

import json
import math
from dataclasses import fields
from typing import Any, TypeVar, get_type_hints

MAX_BYTES = 64 * 1024  # of one value
MAX_TEXT = 1000  # characters that are shown of one text
MAX_MEMBERS = 2000  # that are looked at
MAX_LAG = 1024  # versions; the bound of rollout.lag

_TEXTS = ("kind", "state", "host", "engine", "device", "metrics", "address", "arm", "transfer")
_LAGS = ("lag", "largest_lag")  # the learner keeps versions for them
_COUNTS = (
    "pid",
    "policy_version",
    "step",
    *_LAGS,
    "lag_served",
    "in_flight",
    "groups",
    "tokens",
    "refused_version",
    "ranks",
)
_NUMBERS = (
    "since",
    "progress_at",
    "proof_max_nats",
    "floor_mean_nats",
    "floor_token_ess",
    "pause_median_s",
    "pause_p99_s",
    "refused_nats",
    "busy_share",
)

T = TypeVar("T")


def json_object(raw: bytes | None) -> dict[str, Any]:
    """The JSON object that the bytes hold; empty where they hold none."""
    if raw is None or len(raw) > MAX_BYTES:
        return {}
    try:
        found = json.loads(raw.decode())  # from bytes it would take UTF-16, and half a surrogate pair, too
        if b"\\u" in raw:  # half a surrogate pair is no text that anybody could be sent
            json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def heartbeat(raw: bytes) -> dict[str, Any]:
    """A component's status; the fields that everybody reads are of their type or missing."""
    status = json_object(raw)
    wrong = [name for name in _TEXTS if name in status and not isinstance(status[name], str)]
    wrong += [name for name in _COUNTS if name in status and not _is_count(status[name])]
    wrong += [name for name in _NUMBERS if name in status and not _is_number(status[name])]
    wrong += [name for name in _LAGS if not _is_lag(status.get(name))]
    for name in set(wrong) & status.keys():
        del status[name]
    for name, value in status.items():
        if isinstance(value, str) and len(value) > MAX_TEXT:
            status[name] = value[:MAX_TEXT]
    return status


def record(kind: type[T], raw: bytes | None) -> T | None:
    """A flat dataclass of numbers and texts, or None where the bytes do not hold exactly one."""
    values = json_object(raw)
    checks = {int: _is_count, float: _is_number, str: _is_text}
    hints = get_type_hints(kind)
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]  # T is a dataclass
    if set(values) != names or not all(checks[hints[name]](value) for name, value in values.items()):
        return None
    return kind(**values)


def event(raw: bytes | None) -> dict[str, Any] | None:
    """Something that happened, or None where the bytes do not say what, when and by whom."""
    row = json_object(raw)
    if not _is_number(row.get("at")) or not math.isfinite(row["at"]):
        return None
    texts = {name: row.get(name) for name in ("kind", "text", "by")}
    if not all(isinstance(text, str) for text in texts.values()):
        return None
    return {**{name: str(text)[:MAX_TEXT] for name, text in texts.items()}, "at": float(row["at"])}


def number(raw: bytes) -> int | None:
    """A version or an index in decimal digits, or None."""
    return int(raw) if raw.isdigit() and len(raw) < 19 else None


def seconds(raw: bytes | None) -> float | None:
    """A time in unix seconds, or None."""
    try:
        found = float(raw or b"")
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_TEXT


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**62


def _is_lag(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value <= MAX_LAG


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or _is_count(value)
