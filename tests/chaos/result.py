"""What a scenario found, and how it is written down."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Check:
    """One thing that has to hold."""

    what: str
    holds: bool
    found: str


@dataclass
class ScenarioResult:
    """One scenario's figures; None where a figure does not apply."""

    number: int
    title: str
    short: bool
    seconds: float = 0.0
    faults: int = 0
    groups_sent: int | None = None  # appends that Redis answered
    acknowledged: int | None = None  # different prompt indices that Redis said it has
    applied: int | None = None  # groups in the weights of the last checkpoint
    lost: list[int] | None = None  # acknowledged, and neither in the weights, nor in the stream, nor a dead letter
    applied_twice: list[int] | None = None
    redelivered: int | None = None  # applications that a crash undid and that were done again
    dead_lettered: int | None = None
    dropped: int | None = None  # too stale, each recorded with its reason
    longest_recovery_s: float | None = None
    peak_memory_mib: dict[str, float] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    def check(self, what: str, holds: bool, found: object = "") -> None:
        """Records one thing that has to hold, and what was found."""
        self.checks.append(Check(what, bool(holds), str(found)))

    @property
    def verdict(self) -> str:
        """holds, or what does not."""
        broken = [c.what for c in self.checks if not c.holds]
        return "holds" if self.checks and not broken else "BROKEN: " + ("; ".join(broken) or "nothing was checked")

    @property
    def holds(self) -> bool:
        """True if everything that has to hold does."""
        return self.verdict == "holds"


HEADER = (
    "| # | scenario | faults | sent | acknowledged | applied | lost | twice | dead letters | dropped | redelivered "
    "| longest recovery | time | verdict |"
)


def row(r: ScenarioResult) -> str:
    """One line of the table."""
    lost = None if r.lost is None else len(r.lost)
    twice = None if r.applied_twice is None else len(r.applied_twice)
    recovery = None if r.longest_recovery_s is None else f"{r.longest_recovery_s:.1f} s"
    counts = (r.groups_sent, r.acknowledged, r.applied, lost, twice, r.dead_lettered, r.dropped, r.redelivered)
    cells = [r.number, r.title, r.faults, *counts, recovery, f"{r.seconds:.0f} s", r.verdict]
    return (
        "| "
        + " | ".join("-" if cell is None else f"{cell:,}" if isinstance(cell, int) else cell for cell in cells)
        + " |"
    )


def report(results: Sequence[ScenarioResult], machine: str) -> str:
    """The readable report."""
    form = "short form" if all(r.short for r in results) else "full form"
    lines = ["# Chaos report", "", f"{machine}; {form}", "", HEADER, "|" + "---|" * 14, *map(row, results), ""]
    for r in results:
        lines += ["", f"## {r.number}. {r.title}", ""]
        lines += [
            f"- {'ok    ' if c.holds else 'BROKEN'} {c.what}" + (f": {c.found}" if c.found else "") for c in r.checks
        ]
        memory = ", ".join(f"{name} {mib:.0f}" for name, mib in r.peak_memory_mib.items())
        lines += [f"- peak memory, MiB: {memory}"] if memory else []
        lines += [f"- {name}: {value}" for name, value in r.details.items()]
    return "\n".join(lines) + "\n"


def write(results: Sequence[ScenarioResult], machine: str, folder: Path) -> None:
    """Writes chaos.json and chaos.md."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{**asdict(r), "verdict": r.verdict} for r in results]
    (folder / "chaos.json").write_text(json.dumps({"machine": machine, "scenarios": rows}, indent=1) + "\n")
    (folder / "chaos.md").write_text(report(results, machine))


def read(file: Path) -> ScenarioResult:
    """The only scenario of a report's JSON."""
    [found] = json.loads(file.read_text())["scenarios"]
    found.pop("verdict")
    checks = [Check(**check) for check in found.pop("checks")]
    return ScenarioResult(checks=checks, **found)
