"""The groups of each step that its ratios hang on, over HTTP."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import FastAPI, Path, Query
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from services.control_plane.resources import LOOK, There
from services.control_plane.schemas import Answer, Problem

EXAMPLE = {
    "step": 412,
    "why": ["largest weight share"],
    "group_id": "demo:13190",
    "prompt_index": 13190,
    "server_id": "r3",
    "environment": "spell_backward",
    "weight_share": 0.61,
    "log_ratio_abs_max": 3.2,
    "prompt": "Spell this word backward: stale",
    "trajectories": [{"tokens": ["el", "ats"], "log_ratio": [0.1, -3.2], "reward": 1.0, "finish": "stop"}],
}


class Groups(Answer):
    """Groups as the learner told them, the newest step first; numbers that were not finite are null."""

    groups: list[dict[str, Any]]
    """Step, why it was chosen, ids, prompt, and of each trajectory tokens, log ratios, versions and reward."""


def _described(model: Any, example: Any) -> dict[str, Any]:
    content = {"application/json": {"example": example}}
    none = {404: {"model": Problem, "description": "No such group is kept."}}
    return LOOK | {"responses": LOOK["responses"] | none | {200: {"model": model, "content": content}}}


def add_groups(app: FastAPI) -> None:
    """The routes."""

    @app.get("/v1/groups", tags=["series"], summary="Groups behind a step", **_described(Groups, {"groups": [EXAMPLE]}))
    def groups(
        there: There,
        step: Annotated[int | None, Query(ge=0, le=2**53, description="Of this step; else the newest.")] = None,
        last: Annotated[int, Query(ge=1, le=200, description="At most so many.")] = 50,
    ) -> Response:
        """The few groups of a step whose ratios weigh most; only the newest are kept (learner.examples_bytes)."""
        found = there.control.examples(step, last)[:last]
        return _json({"groups": found})

    @app.get(
        "/v1/groups/{step}/{group_id}",
        tags=["series"],
        summary="One group behind a step",
        **_described(dict[str, Any], EXAMPLE),
    )
    def group(
        there: There,
        step: Annotated[int, Path(ge=0, le=2**53)],
        group_id: Annotated[str, Path(max_length=200, description="Of `/v1/groups`.")],
    ) -> Response:
        """Prompt, tokens, log ratios, versions and reward of one group."""
        for found in there.control.examples(step):
            if found.get("group_id") == group_id:
                return _json(found)
        raise HTTPException(404, f"no group {group_id} of step {step} is kept; /v1/groups lists those that are")


def _json(found: Any) -> Response:
    return Response(json.dumps(found), media_type="application/json")
