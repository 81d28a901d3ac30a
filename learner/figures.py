"""Pictures of objectives: what the KL estimators do, and what each objective does with the same tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from learner.objective.core import Step
from learner.objective.kl import KlEstimator, kl_value_and_slope
from learner.objective.registry import Objective

RAISED, LOWERED, GREY = "#2563eb", "#ea580c", "#94a3b8"
DOTS = 4000  # tokens that are drawn
FARTHEST = 100  # of each side, drawn besides: they decide
COLUMNS = 4
HIGHEST = 4.0  # weight; what is above is drawn there
RARE_SUCCESS = 2.475  # advantage of one success in a group of eight, std with n - 1
ESS = 0.9  # of the example


def draw_estimators(path: Path) -> None:
    """The two KL estimators against the ratio: value, pull on the log-prob, and what of it P3O's score term faces."""
    ratio = torch.logspace(-3, 3, 601, dtype=torch.float64)
    with _figure(path, (11, 3.8), 1, 3) as axes:
        values, pulls, sums = axes.flat
        for estimator, color in zip(get_args(KlEstimator), (RAISED, LOWERED), strict=True):
            value, slope = kl_value_and_slope(ratio.log(), estimator)
            values.plot(ratio, value, color=color, label=estimator)
            pulls.plot(ratio, -slope, color=color, label=estimator)
            push = ratio.clamp(max=ESS) * RARE_SUCCESS - (1 - ESS) * slope
            sums.plot(ratio, push, color=color, label=f"with {estimator}")
        values.set(title="estimate of KL(policy || behavior)", ylabel="nats", yscale="log", ylim=(1e-4, 1e4))
        pulls.set(title="its pull on log policy", ylim=(-8, 8))
        sums.axhline(0, color=GREY, linewidth=1)
        sums.set(title=f"P3O's push: ess {ESS}, advantage {RARE_SUCCESS:.2f}", ylim=(-8, 4))
        for axis in axes.flat:
            axis.set(xscale="log", xlabel="ratio")
            axis.legend(frameon=False)


def draw_weights(path: Path, steps: Sequence[Step], objectives: Sequence[Objective], title: str) -> None:
    """What every objective makes of the same tokens: the weight of advantage * grad log policy against the ratio.

    Args:
        path: of the picture.
        steps: recorded ones; some of their tokens are drawn, and the farthest.
        objectives: one panel each; every one of them can be evaluated on these steps.
        title: says which tokens these are.

    """
    rows = -(-len(objectives) // COLUMNS)
    with _figure(path, (3 * COLUMNS, 2.3 * rows + 0.5), rows, COLUMNS, share=True) as axes:
        for axis, objective in zip(axes.flat, objectives, strict=False):
            ratio, weight, advantages, cut = columns(steps, objective)
            for chosen, color, label in (
                (advantages > 0, RAISED, "advantage > 0"),
                (advantages < 0, LOWERED, "advantage < 0"),
            ):
                axis.scatter(ratio[chosen], weight[chosen], s=3, color=color, alpha=0.4, linewidths=0, label=label)
            axis.set_title(f"{objective.name}: {100 * cut.double().mean():.2g} % cut", fontsize=9, loc="left")
            axis.set(xscale="log", ylim=(-0.1, 1.05 * HIGHEST))
            axis.xaxis.set_minor_formatter("")
        for axis in list(axes.flat)[len(objectives) :]:
            axis.set_visible(False)
        for column in range(COLUMNS):
            last = axes[(len(objectives) - 1 - column) // COLUMNS, column]
            last.set_xlabel("ratio")
            last.tick_params(labelbottom=True)
        for axis in axes[:, 0]:
            axis.set_ylabel("weight")
        axes.flat[0].legend(frameon=False, fontsize=7, markerscale=3)
        axes.flat[0].figure.suptitle(f"{title}; weights above {HIGHEST:g} are drawn at {HIGHEST:g}", fontsize=10)


def columns(steps: Sequence[Step], objective: Objective) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ratio, weight and advantage of tokens evenly taken from the steps and of the farthest ones; cut of all."""
    losses = [objective(step) for step in steps]
    log_ratio = torch.cat([step.log_ratio for step in steps])
    drawn = torch.zeros_like(log_ratio, dtype=torch.bool)
    drawn[:: max(1, len(log_ratio) // DOTS)] = True
    order = log_ratio.argsort()
    drawn[torch.cat([order[:FARTHEST], order[-FARTHEST:]])] = True
    return (
        log_ratio.exp()[drawn],
        torch.cat([loss.weight for loss in losses])[drawn].clamp(max=HIGHEST),
        torch.cat([step.advantages for step in steps])[drawn],
        torch.cat([loss.cut for loss in losses]),
    )


@contextmanager
def _figure(path: Path, size: tuple[float, float], rows: int, columns: int, share: bool = False) -> Iterator[Any]:
    """Axes of a figure that is written to the path at the end; needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=share, sharey=share)
    for axis in axes.flat:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    yield axes
    figure.savefig(path)
