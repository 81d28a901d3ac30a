"""Where a run stands, read from its control state: what the terminal, the page and the API all show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shared.control import ControlState, EvaluationResult, Latest, Phase
from shared.keys import Keys
from shared.letters import ReasonTotals, totals
from shared.redis_client import Client
from shared.steering import Steering
from shared.stream import Backlog, backlog

RECENT = 8  # steps


@dataclass(frozen=True)
class Member:
    """One process of the run, as its heartbeat says."""

    component: str  # "learner", "rollout:r0", "control-plane:host"
    kind: str  # "learner", "rollout" or "control-plane"
    alive: bool  # False: it did not leave in order and its heartbeat ran out
    values: dict[str, Any]  # the heartbeat; empty where it ran out

    @property
    def state(self) -> str:
        """What it does or what it waits for."""
        return str(self.values.get("state", "")) if self.alive else "no heartbeat"

    @property
    def since(self) -> float | None:
        """Unix seconds since which it is in this state."""
        value = self.values.get("since")
        return float(value) if value is not None else None


@dataclass(frozen=True)
class RunStatus:
    """Everything that an operator looks at first."""

    run_id: str
    phase: Phase
    reason: str
    latest: Latest | None
    members: tuple[Member, ...]
    backlog: Backlog
    last: dict[str, Any] | None  # the newest step's record
    evaluations: tuple[EvaluationResult, ...]
    pending_evaluations: tuple[int, ...]
    paused: bool
    events: tuple[dict[str, Any], ...]  # newest first
    dead_letters: Mapping[str, ReasonTotals] = field(default_factory=dict)  # by reason, since the run began
    paused_by: str = ""  # who wants it to stand still
    controller: Mapping[str, Any] = field(default_factory=dict)  # what it remembers, as stored
    controller_holder: str = ""  # the control plane whose controller acts
    recent: tuple[dict[str, Any], ...] = ()  # the newest steps' records, oldest first: what the verdict rests on

    def of_kind(self, kind: str) -> list[Member]:
        """The members of one kind."""
        return [member for member in self.members if member.kind == kind]

    def member(self, component: str) -> Member | None:
        """One member by its id."""
        return next((member for member in self.members if member.component == component), None)


def read_status(client: Client, keys: Keys, events: int = 50) -> RunStatus:
    """Reads the run's control state. Raises StreamError where Redis does not answer as it should."""
    control, steering = ControlState(client, keys), Steering(client, keys)
    phase, reason = control.phase()
    rows = control.history(last=RECENT)
    paused_by = control.paused_by()
    members = [
        Member(component, _kind(component, values), values is not None, values or {})
        for component, values in control.members().items()
    ]
    return RunStatus(
        run_id=keys.run_id,
        phase=phase,
        reason=reason,
        latest=control.latest(),
        members=tuple(members),
        backlog=backlog(client, keys),
        last=rows[-1] if rows else None,
        evaluations=tuple(control.evaluations()),
        pending_evaluations=tuple(control.pending_evaluations()),
        paused=bool(paused_by),
        events=tuple(control.events(last=events)),
        dead_letters=totals(client, keys),
        paused_by=paused_by,
        controller=steering.state(),
        controller_holder=steering.holder(),
        recent=tuple(rows),
    )


def _kind(component: str, values: dict[str, Any] | None) -> str:
    return str((values or {}).get("kind") or component.partition(":")[0])
