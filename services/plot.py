"""The run as a picture: reward and held-out accuracy, ESS, staleness, each against the optimizer step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from services.history import History, Row

BLUE, ORANGE, GREEN, GREY = "#2563eb", "#ea580c", "#15803d", "#94a3b8"
SMOOTHED_OVER = 15  # steps


def draw_plot(history: History, path: Path, title: str) -> None:
    """Draws the run's history; needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 9), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    learning, weight, age = figure.subplots(3, 1, sharex=True, height_ratios=(3, 2, 2))
    rows = [row for row in history.rows if not row.get("skipped")]
    _draw_learning(learning, rows, history.evaluations)
    _draw_ess(weight, rows)
    _draw_staleness(age, rows)
    for axis in (learning, weight, age):
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(loc="best", frameon=False)
    learning.set_title(title, loc="left", fontweight="bold")
    age.set_xlabel("optimizer step")
    figure.savefig(path)


def step_of(version: int, rows: Sequence[Row]) -> int:
    """Optimizer steps that had been taken when this version was the newest."""
    later = next((row for row in rows if row["policy_version"] >= version), None)
    if later is None:
        return int(rows[-1]["step"]) if rows else 0
    return max(0, int(later["step"]) - 1)


def smoothed(values: Sequence[float], over: int = SMOOTHED_OVER) -> list[float]:
    """Mean of each value and those before it, at most `over` of them; NaN where none is finite."""
    means = []
    for i in range(len(values)):
        window = [value for value in values[max(0, i + 1 - over) : i + 1] if math.isfinite(value)]
        means.append(sum(window) / len(window) if window else math.nan)
    return means


def _draw_learning(axis: Any, rows: Sequence[Row], evaluations: Sequence[Row]) -> None:
    steps, rewards = [row["step"] for row in rows], [row["reward_mean"] for row in rows]
    if rows:
        axis.plot(steps, rewards, color=BLUE, alpha=0.25, linewidth=1)
        axis.plot(steps, smoothed(rewards), color=BLUE, linewidth=2, label=f"reward, mean of {SMOOTHED_OVER} steps")
    if evaluations:
        at = [step_of(row["policy_version"], rows) for row in evaluations]
        accuracy = [row["accuracy"] for row in evaluations]
        axis.plot(at, accuracy, color=ORANGE, marker="o", linewidth=2, label="held-out accuracy")
        for x, y in ((at[0], accuracy[0]), (at[-1], accuracy[-1])):
            axis.annotate(f"{y:.2f}", (x, y), textcoords="offset points", xytext=(0, 8), ha="center", color=ORANGE)
    axis.set_ylabel("reward, accuracy")


def _draw_ess(axis: Any, rows: Sequence[Row]) -> None:
    steps = [row["step"] for row in rows]
    if rows:
        axis.plot(steps, [row["token_ess"] for row in rows], color=GREEN, linewidth=1.5, label="token_ess")
        axis.plot(steps, [row["sequence_ess"] for row in rows], color=GREY, linewidth=1.5, label="sequence_ess")
    axis.set_ylim(top=1.005)
    axis.set_ylabel("effective sample size")


def _draw_staleness(axis: Any, rows: Sequence[Row]) -> None:
    steps = [row["step"] for row in rows]
    if rows:
        axis.plot(steps, [row["staleness_mean"] for row in rows], color=BLUE, linewidth=1.5, label="mean")
        axis.step(steps, [row["staleness_max"] for row in rows], color=GREY, linewidth=1, where="mid", label="max")
    axis.set_ylim(bottom=0)
    axis.set_ylabel("staleness (versions)")
