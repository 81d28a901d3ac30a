"""The end of a run in two files: summary.json and plot.png, from what the run folder and Redis hold."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from services.facts import RedisFacts, keep, kept
from services.history import History, Row, applied_counts, read_history
from services.survivorship import survivorship
from shared.errors import StoreError

SUMMARY = "summary.json"
PLOT = "plot.png"
ENDS = 10  # steps whose mean is the reward at the start and at the end


@dataclass(frozen=True)
class Life:
    """What the supervisor knows of a run that has just ended."""

    wall_seconds: float  # of all its starts, start-up included
    reason: str  # why it ended, which the supervisor knows better than the learner
    proof_max_nats: float | None = None  # largest that its rollout servers have reported


@dataclass(frozen=True)
class Delivery:
    """Where every acknowledged group is."""

    appended: int | None  # None where Redis could not be asked
    applied: int
    applied_twice: int
    ended: int  # dropped or dead-lettered, and not applied
    waiting: int | None  # in the stream, neither applied nor ended
    lost: int | None  # acknowledged, and nowhere, or were nowhere before they were drawn again
    unaccounted: int | None  # applied, ended or waiting beyond what was acknowledged: `lost` may be short by these


def write_report(
    folder: Path, run_id: str, facts: RedisFacts | None = None, life: Life | None = None
) -> dict[str, Any]:
    """Writes summary.json and plot.png into the run folder and returns the summary.

    Args:
        folder: the run folder.
        run_id: the run's name.
        facts: what Redis says; None takes what an earlier report kept, if there is one.
        life: what the supervisor knows; None takes the earlier report's, else the time from first to last step.

    Raises:
        StoreError: the folder cannot be written to.

    """
    from services.plot import draw_plot

    history = read_history(folder)
    earlier, before = _earlier(folder), kept(folder)
    reason = life.reason if life else earlier.get("finished_reason", "") if facts is None else ""
    facts = facts or before
    if facts is not None:
        proofs = [known.proof_max_nats for known in (facts, before, life) if known is not None]
        facts = replace(facts, proof_max_nats=_most(proofs))
    summary = summarize(run_id, history, facts)
    wall_seconds = life.wall_seconds if life else earlier.get("wall_seconds")
    summary["wall_seconds"] = _first(wall_seconds, summary["wall_seconds"])
    summary["finished_reason"] = reason or summary["finished_reason"]
    if life is not None:
        summary["numerics_floor_max_nats"] = _most([summary["numerics_floor_max_nats"], life.proof_max_nats])
    try:
        if facts is not None:
            keep(facts, folder)
        partial = folder / (SUMMARY + ".partial")
        partial.write_text(json.dumps(summary, indent=2) + "\n")
        partial.replace(folder / SUMMARY)
        draw_plot(history, folder / PLOT, title=f"{run_id} · {len(taken(history))} steps")
    except OSError as error:
        raise StoreError(f"the report cannot be written to {folder}: {error}") from error
    return summary


def lived(folder: Path) -> float:
    """Seconds that earlier starts of a run took: what was reported, and the steps that came after the report."""
    try:
        reported_at = (folder / SUMMARY).stat().st_mtime
    except OSError:
        reported_at = 0.0
    later = [row["at"] for row in read_history(folder).rows if row["at"] > reported_at]
    return float(_earlier(folder).get("wall_seconds") or 0.0) + (max(later) - min(later) if later else 0.0)


def summarize(run_id: str, history: History, facts: RedisFacts | None) -> dict[str, Any]:
    """The numbers of a run; None where nobody can know one."""
    rows = taken(history)
    evaluations = _evaluations(history, facts)
    delivered = account(history, facts)
    tokens = sum(row["tokens"] for row in rows)
    return {
        "run_id": run_id,
        "finished_reason": _reason(facts),
        "steps": rows[-1]["step"] if rows else 0,
        "policy_version": _first(facts and facts.policy_version, rows[-1]["policy_version"] if rows else None),
        "heldout_accuracy_start": evaluations[0]["accuracy"] if evaluations else None,
        "heldout_accuracy_end": evaluations[-1]["accuracy"] if evaluations else None,
        "heldout_accuracy_best": max((row["accuracy"] for row in evaluations), default=None),
        "wall_seconds": rows[-1]["at"] - rows[0]["at"] if rows else None,
        "groups_appended": delivered.appended,
        "groups_applied": delivered.applied,
        "groups_applied_twice": delivered.applied_twice,
        "groups_lost": delivered.lost,
        "groups_lost_named": sorted({row["prompt_index"] for row in history.lost}),
        "groups_unaccounted": delivered.unaccounted,
        "groups_waiting": delivered.waiting,
        "groups_dropped": _dropped(history),
        "survivorship": survivorship(history),
        "token_ess_min": _least(row["token_ess"] for row in rows),
        "sequence_ess_min": _least(row["sequence_ess"] for row in rows),
        "staleness_mean": _per_token(rows, "staleness_mean"),
        "staleness_max": max((row["staleness_max"] for row in rows), default=None),
        **{f"staleness_{part}_mean": _per_token(rows, f"{part}_mean") for part in ("lag", "flight", "queue")},
        "numerics_floor_max_nats": _most(
            [facts.proof_max_nats if facts else None, *(r.get("floor_max_nats") for r in rows)]
        ),
        "reward_start": _mean(row["reward_mean"] for row in rows[:ENDS]),
        "reward_end": _mean(row["reward_mean"] for row in rows[-ENDS:]),
        "tokens_trained": tokens,
        "steps_skipped": len(history.rows) - len(rows),
        "steps_taken_back": history.abandoned,
        "torn_lines": history.torn,
    }


def account(history: History, facts: RedisFacts | None) -> Delivery:
    """Follows every acknowledged group to where it ended.

        unexplained - unaccounted = appended - applied - ended - waiting - named
        lost = named + unexplained

    Named ones are those of lost.jsonl: found missing, and drawn again, so that they may be acknowledged once more.
    Applied groups are counted from the surviving history, not from the learner's ledger; ended ones are
    those dropped or dead-lettered; waiting ones are in the stream and neither. Entries without an index of this
    run were put there by somebody else: nobody has acknowledged them, so they end no acknowledged group.
    """
    counts = applied_counts(history.rows)
    applied = set(counts)
    gone = [row["prompt_index"] for row in history.dropped]
    dead = facts.dead_letters if facts else []
    ended = (set(gone) | set(dead)) - applied - {-1}
    waiting = lost = unaccounted = None
    if facts is not None:
        waiting = len([i for i in facts.in_stream if i >= 0 and i not in applied and i not in ended])
        balance = facts.appended - len(applied) - len(ended) - waiting - len(history.lost)
        lost, unaccounted = len(history.lost) + max(0, balance), max(0, -balance)
    return Delivery(
        appended=facts.appended if facts else None,
        applied=len(applied),
        applied_twice=sum(1 for times in counts.values() if times > 1),
        ended=len(ended),
        waiting=waiting,
        lost=lost,
        unaccounted=unaccounted,
    )


def taken(history: History) -> list[Row]:
    """The records of batches on which an optimizer step was taken."""
    return [row for row in history.rows if not row.get("skipped")]


def _earlier(folder: Path) -> dict[str, Any]:
    try:
        loaded = json.loads((folder / SUMMARY).read_text())
    except (OSError, ValueError):
        return {}
    return loaded if isinstance(loaded, dict) else {}


def _evaluations(history: History, facts: RedisFacts | None) -> list[Row]:
    rows = [*history.evaluations, *(facts.evaluations if facts else [])]
    by_version = {row["policy_version"]: row for row in rows}
    return [by_version[version] for version in sorted(by_version)]


def _dropped(history: History) -> dict[str, int]:
    applied = applied_counts(history.rows)
    return dict(Counter(row["reason"] for row in history.dropped if row["prompt_index"] not in applied))


def _per_token(rows: Iterable[Row], name: str) -> float | None:
    """The mean over trained tokens of a step's mean; None where no step has it."""
    known = [(row[name], row["tokens"]) for row in rows if row.get(name) is not None]
    tokens = sum(n for _, n in known)
    return sum(value * n for value, n in known) / tokens if tokens else None


def _reason(facts: RedisFacts | None) -> str:
    if facts is None:
        return "unknown (Redis could not be asked)"
    return f"{facts.phase}: {facts.reason}" if facts.reason else facts.phase


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _finite(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]


def _least(values: Iterable[float | None]) -> float | None:
    return min(_finite(values), default=None)


def _most(values: Iterable[float | None]) -> float | None:
    return max(_finite(values), default=None)


def _mean(values: Iterable[float | None]) -> float | None:
    finite = _finite(values)
    return sum(finite) / len(finite) if finite else None
