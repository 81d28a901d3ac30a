"""What order costs, by simulation: `python -m tests.shared.simulate_order` prints deploy/docs/staleness.md's table.

The rules are those of LEASE and of shared/policies.py. A group ends in every round with the same chance, so the times
that groups take are exponential. The learner trains on a batch every so many rounds, if it has one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from shared.policies import Select, Waiting, oldest, stalest

ROUNDS, SEEDS, SERVERS = 400, 5, 3
WAYS: dict[str, tuple[Select, bool]] = {
    "credit, oldest": (oldest, False),
    "credit, stalest": (stalest, False),
    "in_order": (oldest, True),
}


@dataclass(frozen=True)
class Load:
    """A run's shape."""

    name: str
    max_staleness: int
    batch: int  # groups, published after each
    capacity: int  # groups that a server draws at once
    ends: float  # chance that a group ends in a round
    step_rounds: int  # of the learner


LOADS = (
    Load("learner is the bottleneck", 4, 8, 8, 0.3, 4),
    Load("the same, fewer in flight", 4, 16, 4, 0.3, 4),
    Load("servers are the bottleneck, few in flight", 4, 16, 4, 0.1, 1),
    Load("servers are the bottleneck, many in flight", 4, 8, 8, 0.1, 1),
    Load("learner is the bottleneck", 1, 8, 8, 0.3, 4),
)


@dataclass
class Simulation:
    """One run; groups are the versions that draw them."""

    load: Load
    select: Select
    in_order: bool
    random: random.Random
    version: int = 0
    useful: int = 0
    dropped: int = 0
    drawing: list[list[int]] = field(default_factory=lambda: [[] for _ in range(SERVERS)])
    stream: list[int] = field(default_factory=list)

    def room(self) -> int:
        """Groups that may be asked for now."""
        out = [version for server in self.drawing for version in server]
        age = self.version - min(out, default=self.version) if self.in_order else 0
        return (self.load.max_staleness + 1 - age) * self.load.batch - len(out) - len(self.stream)

    def draw(self) -> None:
        """Every server asks for what it has room for, and ends some."""
        for server in self.drawing:
            server.extend([self.version] * max(0, min(self.load.capacity - len(server), self.room())))
            ended = [self.random.random() < self.load.ends for _ in server]
            self.stream += [version for version, end in zip(server, ended, strict=True) if end]
            server[:] = [version for version, end in zip(server, ended, strict=True) if not end]

    def train(self) -> None:
        """Drops what is too stale; trains on a batch if there is one, and publishes."""
        kept = [version for version in self.stream if self.version - version <= self.load.max_staleness]
        self.dropped += len(self.stream) - len(kept)
        if len(kept) >= self.load.batch:
            taken = set(self.select([Waiting(self.version - version, 0) for version in kept], self.load.batch))
            kept = [version for i, version in enumerate(kept) if i not in taken]
            self.useful += len(taken)
            self.version += 1
        self.stream = kept


def simulate(load: Load, way: str) -> tuple[int, int]:
    """(useful, dropped) groups of all seeds."""
    useful = dropped = 0
    for seed in range(SEEDS):
        run = Simulation(load, *WAYS[way], random.Random(seed))
        for number in range(ROUNDS):
            run.draw()
            if number % load.step_rounds == 0:
                run.train()
        useful, dropped = useful + run.useful, dropped + run.dropped
    return useful, dropped


def table(loads: Sequence[Load] = LOADS) -> str:
    """As Markdown."""
    lines = [f"| max_staleness, servers | {' | '.join(WAYS)} |", "|---|" + "---|" * len(WAYS)]
    for load in loads:
        cells = ["{:,} / {:,}".format(*simulate(load, way)) for way in WAYS]
        lines.append(f"| {load.max_staleness}, {load.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
