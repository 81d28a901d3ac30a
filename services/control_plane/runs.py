"""The runs in this Redis, over HTTP."""

from __future__ import annotations

from fastapi import FastAPI

from services.control_plane.resources import LOOK, Here
from services.control_plane.schemas import Answer, Number
from shared.runs import known_runs


class RunAnswer(Answer):
    """One run."""

    id: str
    """Give it as `run` to any route that looks."""
    phase: str
    reason: str
    step: int
    """Optimizer steps in its newest version."""
    steps: int
    """After which it is over; 0 where its learner has not said."""
    policy_version: int | None
    at: Number
    """Unix seconds of its newest step, else of its last start."""
    own: bool
    """The run that this control plane is for: the only one that it can change."""


class Runs(Answer):
    """The runs in this Redis that may be read, those that began last first."""

    runs: list[RunAnswer]


def add_runs(app: FastAPI) -> None:
    """The route."""

    @app.get("/v1/runs", tags=["run"], summary="Runs in this Redis", **LOOK)
    def runs(here: Here) -> Runs:
        """Every run that a learner has started here, at most a hundred, and this one."""
        found = known_runs(here.client, here.keys)
        return Runs(runs=[RunAnswer(own=run.id == here.keys.run_id, **vars(run)) for run in found])
