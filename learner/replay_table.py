"""A replay as tables: the steps as they were, then each objective over all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.table import Table

from learner.replay import Report
from learner.replay_step import Replayed, ReplayedStep
from learner.shadows import ShadowOutcome

MOST_STEPS = 20  # lines of the first table
FILE_WIDTH = 120  # columns of what no terminal shows
NOTHING = "-"
REPEATED = ("loss", "token_ess", "sequence_ess")  # what is named first where it does not
LEGEND = """*: trained; means over steps; cut: tokens clipped, capped or masked; zero: without a score term;
w: what multiplies advantage x grad log policy; lr x: factor of the learning rate;
worst: the step with the lowest w ESS; log ratio: the largest |log ratio|, nats"""

_MEANS: dict[str, Callable[[ShadowOutcome], float]] = {
    "loss": lambda o: o.loss,
    "cut %": lambda o: 100 * o.cut_share,
    "zero %": lambda o: 100 * o.zero_weight_share,
    "w p50": lambda o: o.weight_p50,
    "w p99": lambda o: o.weight_p99,
    "w max": lambda o: o.weight_max,
    "w ESS": lambda o: o.weight_ess,
    "lr x": lambda o: o.step_factor,
}


def show(report: Report) -> None:
    """Prints a report."""
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, emoji=False, width=max(console.width, FILE_WIDTH))
    for name, why in report.refused:
        console.print(f"refused: {name}: {why}", soft_wrap=True)
    if not report.steps:
        console.print("no step could be replayed")
        return
    devices = sorted({f"{s.device}, {s.threads} thread{'s' * (s.threads != 1)}" for s in report.steps})
    console.print(f"{len(report.steps)} recorded steps; {report.weights}; {'; '.join(devices)}\n", soft_wrap=True)
    console.print(_steps(report.steps))
    for line in _skipped(report.steps):
        console.print(line, soft_wrap=True)
    console.print()
    console.print(_objectives(report.steps))
    console.print(f"\n{LEGEND}\n", soft_wrap=True)
    for line in _lacks(report.steps):
        console.print(line, soft_wrap=True)
    console.print(_repeats(report), soft_wrap=True)


def _steps(steps: Sequence[ReplayedStep]) -> Table:
    shown, title = steps, "steps"
    if len(steps) > MOST_STEPS:
        worst = sorted(steps, key=lambda s: _or_least(s.token_ess))[:MOST_STEPS]
        shown, title = sorted(worst, key=lambda s: s.step), f"the {MOST_STEPS} steps of the lowest token ESS"
    title += "; ESS and log ratio with these weights, the rest as it was" if _anew(steps) else ", as they were"
    columns = ("step", "version", "stale", "tokens", "token ESS", "seq ESS", "log ratio", "loss", "grad norm", "lr")
    table = _table(title, *columns)
    for s in shown:
        numbers = [s.token_ess, s.sequence_ess, s.log_ratio_abs_max]
        numbers += [s.recorded[name] for name in ("loss", "grad_norm", "learning_rate")]
        whole = [str(n) for n in (s.step, s.policy_version, s.staleness_max, s.tokens)]
        table.add_row(*whole, *map(_number, numbers))
    return table


def _skipped(steps: Sequence[ReplayedStep]) -> Iterator[str]:
    for step in steps:
        found = step.offending_groups
        groups = f"all {step.groups} groups" if len(found) == step.groups else ", ".join(found)
        if step.skipped:
            yield f"step {step.step} was skipped: {step.skipped}" + (f" in {groups}" if found else "")


def _objectives(steps: Sequence[ReplayedStep]) -> Table:
    gradients = _anew(steps)
    columns = [*_MEANS, *(["grad norm", "cosine"] if gradients else [])]
    table = _table("what each objective makes of them", "objective", *columns, "worst")
    table.columns[0].justify = "left"
    trained = {s.objectives[0].objective for s in steps}
    for label, rows in _by_label(steps).items():
        outcomes = [(s, r, r.outcome) for s, r in rows if r.outcome is not None]
        if not outcomes:
            continue
        cells = [_number(_mean([of(o) for _, _, o in outcomes])) for of in _MEANS.values()]
        if gradients:
            cells.append(_number(_mean([r.grad_norm for _, r, _ in outcomes])))
            cells.append(_number(_mean([o.cosine for _, _, o in outcomes])))
        step, _, worst = min(outcomes, key=lambda item: _or_least(item[2].weight_ess))
        name = f"{label} *" if label in trained else label
        table.add_row(name, *cells, f"{step.step}: {_number(worst.weight_ess)}")
    return table


def _anew(steps: Sequence[ReplayedStep]) -> bool:
    """True if the log-probs are those of other weights, with gradients."""
    return any(r.grad_norm is not None for s in steps for r in s.objectives)


def _by_label(steps: Sequence[ReplayedStep]) -> dict[str, list[tuple[ReplayedStep, Replayed]]]:
    found: dict[str, list[tuple[ReplayedStep, Replayed]]] = {}
    for step in steps:
        for replayed in step.objectives:
            found.setdefault(replayed.objective, []).append((step, replayed))
    return found


def _lacks(steps: Sequence[ReplayedStep]) -> list[str]:
    """What could not be said, and why, by objective."""
    lines = []
    for label, rows in _by_label(steps).items():
        lacking = [(s.step, r.lacks) for s, r in rows if r.lacks]
        if lacking:
            where = "" if len(lacking) == len(rows) else f" in {len(lacking)} of {len(rows)} steps"
            lines.append(f"{label}{where}: {lacking[0][1]}")
    return lines


def _repeats(report: Report) -> str:
    """Whether the trained objective gave what the learner wrote down."""
    other = [s for s in report.steps if s.differs]
    if not other:
        return "The trained objective gives the recorded loss and ESS statistics bit for bit in every step."
    worst = max(other, key=lambda s: _size(s.differs.get("loss", 0.0)))
    shown = {name: worst.differs[name] for name in REPEATED if name in worst.differs} or worst.differs
    most = ", ".join(f"{name} by {value:.3g}" for name, value in shown.items())
    return (
        f"The trained objective differs from what was recorded in {len(other)} of {len(report.steps)} steps, "
        f"most in step {worst.step}: {most}."
    )


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, header_style="bold", padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, justify="right", overflow="fold")
    return table


def _mean(values: Sequence[float | None]) -> float | None:
    """Of those that are finite."""
    finite = [v for v in values if v is not None and math.isfinite(v)]
    return math.fsum(finite) / len(finite) if finite else None


def _or_least(value: float) -> float:
    """For sorting: what is not finite comes first."""
    return value if math.isfinite(value) else -math.inf


def _size(value: float) -> float:
    """For sorting: what is not finite comes last."""
    return abs(value) if math.isfinite(value) else math.inf


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3g}"
