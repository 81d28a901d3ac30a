"""What `trustbatch up` shows: live on a terminal, a line now and then where the output is piped."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from services.progress import Progress, duration, sparkline
from services.survivorship import told
from services.verdict import Verdict

LINE_EVERY_S = 5.0
_COLOURS = {"idle": "cyan", "good": "green", "warn": "yellow", "bad": "red"}
_SHAPES = {"idle": "○", "good": "✓", "warn": "▲", "bad": "✗"}


@dataclass(frozen=True)
class ProcessLine:
    """One process of the run: what it does, and for how long."""

    name: str
    state: str
    seconds: float | None
    note: str = ""  # "version 12", ...


@dataclass(frozen=True)
class View:
    """One look at the run."""

    run_id: str
    verdict: Verdict
    processes: Sequence[ProcessLine]
    progress: Progress | None  # None before the first step
    dashboard: str  # '' until it is known
    metrics: Sequence[str]
    elapsed_s: float | None  # since `trustbatch up`; None where somebody else watches
    advice: str = ""  # what the operator has to do for the run to go on


class Screen(Protocol):
    """Where a run is shown."""

    def say(self, text: str) -> None:
        """One line that stays."""

    def show(self, view: View) -> None:
        """The newest look at the run."""

    def close(self) -> None:
        """Gives the terminal back."""


def open_screen(console: Console) -> Screen:
    """Live where somebody watches, plain lines elsewhere."""
    return LiveScreen(console) if console.is_terminal else PlainScreen(console)


class LiveScreen:
    """A panel at the bottom of the terminal that is drawn again with every look."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def say(self, text: str) -> None:
        """One line above the panel."""
        self._console.print(text, highlight=False, markup=False)

    def show(self, view: View) -> None:
        """Draws the panel."""
        if not self._live.is_started:
            self._live.start()
        self._live.update(draw(view), refresh=True)

    def close(self) -> None:
        """Takes the panel away."""
        self._live.stop()


class PlainScreen:
    """Lines for a pipe or a log: a new state at once, numbers every few seconds."""

    def __init__(self, console: Console, every_s: float = LINE_EVERY_S) -> None:
        self._console = console
        self._every_s = every_s
        self._next = 0.0
        self._said: set[str] = set()

    def say(self, text: str) -> None:
        """One line."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def show(self, view: View) -> None:
        """One line, unless the last one is fresh."""
        self._once("dashboard", view.dashboard)
        for address in view.metrics:
            self._once("metrics", address)
        now = time.monotonic()
        if now >= self._next:
            self._next = now + self._every_s
            self.say(line(view))

    def close(self) -> None:
        """Nothing is kept open."""

    def _once(self, what: str, address: str) -> None:
        if address and address not in self._said:
            self._said.add(address)
            self.say(f"{what:<9} {address}")


def line(view: View) -> str:
    """The view in one line."""
    clock = f"[{duration(view.elapsed_s)}]"
    advice = f"  {view.advice}" if view.advice else ""
    p = view.progress
    if p is None:
        doing = "; ".join(f"{row.name}: {row.state} ({duration(row.seconds)})" for row in view.processes)
        return f"{clock} starting  {doing}{advice}"
    numbers = "  ".join(f"{name} {value}" for name, value in [*_numbers(p), _pace(p)])
    return f"{clock} step {p.step}/{p.steps}  {numbers}{advice}"


def draw(view: View) -> RenderableType:
    """The view as a panel."""
    level, sentence = view.verdict.level, view.verdict.sentence
    parts: list[RenderableType] = [Text(f"{_SHAPES[level]} {sentence}", style=f"bold {_COLOURS[level]}")]
    parts += [Text(view.advice, style="bold"), Text()] if view.advice else [Text()]
    if view.progress is not None:
        parts += [_bar(view.progress), _grid(view.progress), Text()]
    if view.verdict.parts:
        parts += [_rests_on(view.verdict), Text()]
    parts += [_processes(view.processes)]
    if view.dashboard:
        parts += [Text(), Text.assemble("dashboard ", (view.dashboard, "bold underline"))]
    if view.metrics:
        parts += [Text("metrics   " + "  ".join(view.metrics), style="dim")]
    title = f"trustbatch · {view.run_id}" + (f" · {duration(view.elapsed_s)}" if view.elapsed_s is not None else "")
    return Panel(Group(*parts), title=title, title_align="left", padding=(0, 1))


def summary_table(summary: dict[str, Any]) -> Table:
    """The end of a run: what a person asks first."""
    table = Table(show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_row("run", summary["run_id"])
    table.add_row("ended", summary["finished_reason"])
    for name, keys in _SUMMARY.items():
        between = " / " if "/" in name else " → "
        table.add_row(name, between.join(_shown(summary.get(key)) for key in keys))
    if line := told(summary.get("survivorship", {})):
        table.add_row("dropped against trained", line)
    table.add_row("wall time", duration(summary["wall_seconds"]))
    return table


_SUMMARY: dict[str, tuple[str, ...]] = {
    "steps": ("steps",),
    "policy version": ("policy_version",),
    "held-out accuracy": ("heldout_accuracy_start", "heldout_accuracy_end"),
    "reward": ("reward_start", "reward_end"),
    "token ESS, smallest": ("token_ess_min",),
    "sequence ESS, smallest": ("sequence_ess_min",),
    "staleness, mean / max (versions)": ("staleness_mean", "staleness_max"),
    "of it lag / flight / queue": ("staleness_lag_mean", "staleness_flight_mean", "staleness_queue_mean"),
    "numerics floor (nats)": ("numerics_floor_max_nats",),
    "groups applied": ("groups_applied",),
    "groups lost": ("groups_lost",),
    "groups beyond those acknowledged": ("groups_unaccounted",),
    "groups applied twice": ("groups_applied_twice",),
    "groups dropped": ("groups_dropped",),
    "tokens trained": ("tokens_trained",),
}


def _shown(value: Any) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, dict):
        return ", ".join(f"{count:,} {reason}" for reason, count in value.items()) or "0"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 0.001 and value else f"{value:,.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _numbers(p: Progress) -> list[tuple[str, str]]:
    accuracy = "-" if p.accuracy is None else f"{p.accuracy_start:.3f} → {p.accuracy:.3f}"
    staleness = "-" if p.staleness_mean is None else f"{p.staleness_mean:.2f} / {p.staleness_max}"
    return [
        ("reward", _fixed(p.reward)),
        ("held-out", accuracy),
        ("token_ess", _fixed(p.token_ess, 4)),
        ("staleness", staleness),
        ("tokens/s", "-" if p.tokens_per_s is None else f"{p.tokens_per_s:,.0f}"),
        ("backlog", str(p.backlog_groups)),
    ]


def _fixed(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _bar(p: Progress) -> RenderableType:
    grid = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=p.steps, completed=p.step, width=40, complete_style="cyan")
    grid.add_row(f"step {p.step} / {p.steps}", bar, " ".join(_pace(p)))
    return grid


def _pace(p: Progress) -> tuple[str, str]:
    """When the run will be over, or how long nothing has happened."""
    return ("ETA", duration(p.eta_s)) if p.stalled_s is None else ("last step", f"{duration(p.stalled_s)} ago")


def _grid(p: Progress) -> RenderableType:
    numbers = dict(_numbers(p))
    grid = Table.grid(padding=(0, 2))
    grid.add_row("reward", Text(numbers["reward"], style="bold"), Text(sparkline(p.rewards), style="cyan"))
    grid.add_row("held-out accuracy", Text(numbers["held-out"], style="bold"), "")
    grid.add_row("token_ess", Text(numbers["token_ess"], style="bold"), Text(sparkline(p.ess), style="cyan"))
    grid.add_row("staleness", Text(numbers["staleness"], style="bold"), "mean / max, versions")
    grid.add_row("trained tokens/s", Text(numbers["tokens/s"], style="bold"), f"backlog {numbers['backlog']} groups")
    return grid


def _rests_on(judged: Verdict) -> RenderableType:
    """What the verdict rests on, a line each."""
    grid = Table.grid(padding=(0, 1))
    for part in judged.parts.values():
        grid.add_row(Text(_SHAPES[part.level], style=_COLOURS[part.level]), part.sentence)
    return grid


def _processes(rows: Sequence[ProcessLine]) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    for row in rows:
        grid.add_row(Text(row.name, style="bold"), row.state, Text(duration(row.seconds), style="dim"), row.note)
    return grid
