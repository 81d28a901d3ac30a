"""A run's status in full swing, any field of which can be replaced."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from services.status import Member, RunStatus
from shared.control import Latest
from shared.stream import Backlog
from tests.services.rows import step

LEARNER = Member("learner", "learner", True, {"state": "waiting for groups"})
ROLLOUT = Member("rollout:r0", "rollout", True, {"state": "loading vLLM"})


def status(**changes: Any) -> RunStatus:
    """The status of a run that trains."""
    plain = RunStatus(
        run_id="demo",
        phase="running",
        reason="",
        latest=Latest(1, 0, 1),
        members=(LEARNER, ROLLOUT),
        backlog=Backlog(12, 9, 3, 1000, 50, 0),
        last=step(1),
        evaluations=(),
        pending_evaluations=(),
        paused=False,
        events=(),
    )
    return replace(plain, **changes)
