"""How far a run is and how fast: pure functions of its history, for the terminal."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from services.history import extend
from services.status import RunStatus

STALL_S = 5.0  # without a step, unless steps themselves take that long
STALL_STEPS = 3
WINDOW = 30  # steps over which speeds are averaged
_BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Progress:
    """The numbers of one look at a run."""

    step: int
    steps: int
    reward: float | None  # of the newest step
    rewards: tuple[float, ...]  # of every step seen, oldest first
    accuracy_start: float | None
    accuracy: float | None  # newest held-out result
    token_ess: float | None
    ess: tuple[float, ...]  # of every step seen, oldest first
    staleness_mean: float | None  # versions
    staleness_max: int | None  # versions
    tokens_per_s: float | None  # trained
    eta_s: float | None
    backlog_groups: int
    stalled_s: float | None = None  # age of the newest step, where it is older than the pace explains


class Tracker:
    """Keeps the history that was seen, so that each look asks Redis only for what is new."""

    def __init__(self, steps: int) -> None:
        self._steps = steps  # after which the run is over
        self._rows: list[dict[str, Any]] = []

    @property
    def last_step(self) -> int:
        """The newest step that was seen."""
        return int(self._rows[-1]["step"]) if self._rows else 0

    def missing(self, status: RunStatus) -> int:
        """How many rows to ask for, given the newest one's number."""
        newest = int(status.last["step"]) if status.last else 0
        return max(1, newest - self.last_step) if newest != self.last_step else 0

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Takes over new rows, oldest first."""
        for row in rows:
            extend(self._rows, row)

    def progress(self, status: RunStatus, now: float | None = None) -> Progress:
        """The numbers to show now (unix seconds)."""
        last = self._rows[-1] if self._rows else {}
        recent = self._rows[-WINDOW:]
        steps = self._steps
        evaluations = status.evaluations
        step_s = seconds_per_step(recent)
        stalled_s = _stalled(last, step_s, time.time() if now is None else now)
        return Progress(
            step=self.last_step,
            steps=steps,
            reward=last.get("reward_mean"),
            rewards=tuple(row["reward_mean"] for row in self._rows if row.get("reward_mean") is not None),
            accuracy_start=evaluations[0].accuracy if evaluations else None,
            accuracy=evaluations[-1].accuracy if evaluations else None,
            token_ess=last.get("token_ess"),
            ess=tuple(row["token_ess"] for row in self._rows if row.get("token_ess") is not None),
            staleness_mean=last.get("staleness_mean"),
            staleness_max=last.get("staleness_max"),
            tokens_per_s=tokens_per_second(recent),
            eta_s=None if step_s is None or stalled_s is not None else step_s * max(0, steps - self.last_step),
            backlog_groups=status.backlog.unapplied,
            stalled_s=stalled_s,
        )


def seconds_per_step(rows: Sequence[dict[str, Any]]) -> float | None:
    """Median time between steps, so that a pause does not count; None where there are not two."""
    gaps = [max(0.0, float(b["at"] - a["at"])) for a, b in pairwise(rows) if b["step"] > a["step"]]
    return median(gaps) if gaps else None


def _stalled(last: dict[str, Any], step_s: float | None, now: float) -> float | None:
    age = now - float(last.get("at", now))
    return age if age > max(STALL_S, STALL_STEPS * (step_s or 0.0)) else None


def tokens_per_second(rows: Sequence[dict[str, Any]]) -> float | None:
    """Trained tokens per second, in the median step; None where there are not two."""
    seconds = seconds_per_step(rows)
    return median(float(row["tokens"]) for row in rows) / seconds if seconds else None


def sparkline(values: Sequence[float], width: int = 30) -> str:
    """The values as small bars, averaged down to `width` of them; what is not finite is left out."""
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return ""
    cuts = [round(i * len(values) / min(width, len(values))) for i in range(min(width, len(values)) + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(cuts)]
    low, high = min(means), max(means)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((mean - low) * scale)] for mean in means)


def duration(seconds: float | None) -> str:
    """`1 h 02 min`, `3 min 05 s`, `12 s`."""
    if seconds is None:
        return "-"
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"
