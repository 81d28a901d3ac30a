"""`python -m services.controller.figure FOLDER`: a simulated run as a picture, and how often it acts with no fault."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from services.controller.decide import Setting
from services.controller.evidence import HYSTERESIS
from services.controller.simulation import Point, World, simulate
from services.history import Row
from services.plot import BLUE, GREEN, GREY, ORANGE
from shared.config.controller import ControllerConfig

STEPS = 1200
SEED = 1
LEAST = 3e-4  # share of the weight that is drawn
EVENTS = ((150, "lag 16 wanted"), (450, "drift / 4"), (800, "drift x 20"), (950, "drift / 20"))
SHARES = (0.1, 0.2, 0.4, 0.8)  # of the limit, that is lost at the median step
COMPLETIONS = (16, 64, 256)


def eventful() -> World:
    """The run of the picture: the operator raises the lag, the policy moves slower, then too fast for any staleness."""

    def drift(step: int) -> float:
        return 0.05 if step < 450 else 0.25 if 800 <= step < 950 else 0.0125

    return World(lambda step: Setting(0 if step < 150 else 16, 4), drift)


def faultless(share: float, completions: int) -> World:
    """Staleness 4 for ever; the median step loses this share of what the default limit allows."""
    lost = share * (1 - ControllerConfig().token_ess)
    drift = float(np.sqrt(-np.log(1 - lost))) / 4
    return World(lambda _: Setting(0, 4), lambda _: drift, completions)


def acting_runs(world: World, steps: int, seeds: Sequence[int]) -> int:
    """In how many runs the controller does anything at all."""
    rules = ControllerConfig()
    return sum(any(point.kind for point in simulate(world, steps, seed, rules)) for seed in seeds)


def draw(path: Path) -> None:
    """The eventful run with the controller and, grey, without."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steered = list(simulate(eventful(), STEPS, SEED, ControllerConfig()))
    left = list(simulate(eventful(), STEPS, SEED, None))
    figure = Figure(figsize=(10, 7.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    trust, stale, asked = figure.subplots(3, 1, sharex=True, height_ratios=(3, 2, 2))
    rules = ControllerConfig()
    _lines(trust, left, steered, lambda row: max(LEAST, 1 - row["token_ess"]))
    trust.axhline(1 - rules.token_ess, color=ORANGE, linewidth=1, label="too much: controller.token_ess")
    trust.axhline((1 - rules.token_ess) / HYSTERESIS, color=ORANGE, linewidth=1, linestyle=":", label="little: good")
    trust.set(ylabel="lost: 1 - token ESS", yscale="log", ylim=(LEAST, 1.1))
    _lines(stale, left, steered, lambda row: row["staleness_mean"])
    stale.set(ylabel="staleness (versions)")
    x = range(STEPS)
    for color, name in ((BLUE, "lag"), (ORANGE, "max_staleness")):
        asked.plot(x, [getattr(p.wanted, name) for p in steered], color=color, linewidth=1, linestyle=":")
        asked.plot(x, [getattr(p.setting, name) for p in steered], color=color, label=f"{name} (dotted: wanted)")
    asked.set(ylabel="asked for (versions)", xlabel="optimizer step")
    for axis in (trust, stale, asked):
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False, fontsize=8)
        for step, _ in EVENTS:
            axis.axvline(step, color=GREY, linewidth=0.8)
    for step, text in EVENTS:
        trust.annotate(text, (step, LEAST * 1.2), fontsize=8, rotation=90, ha="right", va="bottom", color="#475569")
    figure.savefig(path)


def _lines(axis: Any, left: Sequence[Point], steered: Sequence[Point], value: Callable[[Row], float]) -> None:
    for points, color, label in ((left, GREY, "without"), (steered, GREEN, "with the controller")):
        axis.plot(range(STEPS), [value(point.row) for point in points], color=color, linewidth=1, label=label)


def main() -> int:
    """Draws, and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m services.controller.figure", description=__doc__)
    parser.add_argument("folder", type=Path, help="where controller.png goes")
    parser.add_argument("--runs", type=int, default=100, help="faultless runs of each kind")
    parser.add_argument("--steps", type=int, default=1000, help="steps of each of them")
    arguments = parser.parse_args()
    draw(arguments.folder / "controller.png")
    print(f"of {arguments.runs} runs of {arguments.steps} steps, those in which it acted")
    print("| lost at the median step / limit | " + " | ".join(f"{n} completions" for n in COMPLETIONS) + " |")
    print("|---|" + "---|" * len(COMPLETIONS))
    for share in SHARES:
        found = [acting_runs(faultless(share, n), arguments.steps, range(arguments.runs)) for n in COMPLETIONS]
        print(f"| {share} | " + " | ".join(map(str, found)) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
