"""Whether what was dropped differs from what was trained on: a run that loses long or hard groups learns short ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from services.history import History, Row, applied_counts


def survivorship(history: History) -> dict[str, Any]:
    """Groups, mean length (tokens) and mean reward of what was trained on and of what was dropped, also by reason.

    Means of trained groups are over completions, of dropped ones over groups; None where nothing could be read.
    """
    trained = [row for row in history.rows if not row.get("skipped")]
    applied = applied_counts(history.rows)
    dropped = [row for row in history.dropped if row["prompt_index"] not in applied]
    reasons = sorted({row["reason"] for row in dropped})
    return {
        "trained": {
            "groups": len(applied),
            "length_mean": _weighted(trained, "length_mean"),
            "reward_mean": _weighted(trained, "reward_mean"),
        },
        "dropped": _of(dropped),
        "dropped_by_reason": {reason: _of([row for row in dropped if row["reason"] == reason]) for reason in reasons},
    }


def told(found: dict[str, Any]) -> str:
    """The comparison in one line, '' where nothing that could be read was dropped."""
    trained, dropped = found.get("trained", {}), found.get("dropped", {})
    if trained.get("length_mean") is None or dropped.get("length_mean") is None:
        return ""
    return (
        f"length {dropped['length_mean']:.1f} against {trained['length_mean']:.1f}, "
        f"reward {dropped['reward_mean']:.3f} against {trained['reward_mean']:.3f}"
    )


def _of(rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "groups": len(rows),
        "length_mean": _mean(row.get("length_mean") for row in rows),
        "reward_mean": _mean(row.get("reward_mean") for row in rows),
        "staleness_mean": _mean(row.get("staleness") for row in rows),
    }


def _weighted(rows: Sequence[Row], name: str) -> float | None:
    """Over completions."""
    pairs = [(row[name], row["trajectories"]) for row in rows if row.get(name) is not None]
    total = sum(weight for _, weight in pairs)
    return sum(value * weight for value, weight in pairs) / total if total else None


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
