"""The learner's settings that may change while it runs, over HTTP: a factor of its learning rate, live knobs."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Body, FastAPI
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException

from services.control_plane import problems
from services.control_plane.resources import BY, LOOK, OPERATE, Here, Resources
from services.control_plane.schemas import Answer, Number, Problem
from shared import untrusted
from shared.control import LEARNER
from shared.wishes import OBJECTIVE, Wishes, canonical

CHANGED: dict[str, Any] = OPERATE | {
    "responses": OPERATE["responses"]
    | {
        400: {"model": Problem, "description": "A body that is no JSON."},
        409: {"model": Problem, "description": "No learner lives that could say what it takes."},
        422: {"model": Problem, "description": "A knob that may not change now, or a value out of its bounds."},
    }
}
Factor = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False, strict=True)]
Value = Annotated[float, Field(allow_inf_nan=False, strict=True)]


class SettingsWanted(BaseModel):
    """What is wanted; what is left away: as configured."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    learning_rate_factor: Factor = 1.0
    """Multiplies the configured learning rate, its schedule included."""
    knobs: Annotated[dict[str, Value], Field(max_length=32)] = {}
    """Of the objective, by name; `knobs` of the answer lists those that may change."""


class LiveKnob(Answer):
    """A number of the objective that may change while the run goes on."""

    name: str
    value: float
    """That counts now."""
    least: float
    most: float


class Taken(Answer):
    """What the learner says that counts."""

    name: str
    """The objective."""
    learning_rate_factor: float
    knobs: list[LiveKnob]
    since_step: int
    """Optimizer steps that were done when it took this."""
    refused: str
    """Why it did not take what is wanted; empty where it did."""


class Objective(Answer):
    """The learner's settings that may change while it runs."""

    wanted: SettingsWanted
    asked_by: str
    """Who wants it; empty: the configuration."""
    asked_at: Number
    """Unix seconds."""
    taken: Taken | None
    """By the learner that lives; null where there is none."""


class ObjectiveChanged(Objective):
    """The same, from the learner's next batch on."""

    changed: bool
    """False where it was wanted already."""


EXAMPLES: Any = {
    "half": {"summary": "Half the learning rate", "value": {"learning_rate_factor": 0.5}},
    "clip": {"summary": "A tighter clip", "value": {"knobs": {"eps_high": 0.1}}},
}
Wanted = Annotated[SettingsWanted, Body(openapi_examples=EXAMPLES)]


def add_objective(app: FastAPI) -> None:
    """The routes."""

    @app.get("/v1/objective", tags=["run"], summary="What of the learner may change now", **LOOK)
    def objective(here: Here) -> Objective:
        """What is wanted, what the learner took of it, and which knobs may change within which bounds."""
        return Objective(**_fields(here))

    @app.put("/v1/objective", tags=["operator"], summary="Want other settings", **CHANGED)
    def put(here: Here, same_site: problems.SameSite, wanted: Wanted) -> ObjectiveChanged:
        """Counts from the learner's next batch on, and across restarts. May be repeated."""
        _check(here, wanted)
        return _wish(here, wanted)

    @app.delete("/v1/objective", tags=["operator"], summary="Want the configured settings again", **CHANGED)
    def delete(here: Here, same_site: problems.SameSite, no_body: problems.NoBody) -> ObjectiveChanged:
        """Takes back what was wanted while the run went on. May be repeated."""
        return _wish(here, SettingsWanted())


def _check(here: Resources, wanted: SettingsWanted) -> None:
    taken = _taken(here)
    if taken is None:
        raise HTTPException(409, "no learner lives that could say what may change: ask again once it trains")
    live = {knob.name: knob for knob in taken.knobs}
    for name, value in wanted.knobs.items():
        if name not in live:
            may = ", ".join(sorted(live)) or "none"
            raise HTTPException(422, f"knobs.{name[:80]}: may not change while {taken.name} runs; may: {may}")
        if not live[name].least <= value <= live[name].most:
            raise HTTPException(422, f"knobs.{name}: from {live[name].least:g} to {live[name].most:g}, not {value:g}")


def _wish(here: Resources, wanted: SettingsWanted) -> ObjectiveChanged:
    factor = wanted.learning_rate_factor
    text = canonical({"learning_rate_factor": factor if factor < 1 else None, "knobs": wanted.knobs})
    knobs = "".join(f", {name} {value:g}" for name, value in sorted(wanted.knobs.items()))
    told = f"wanted: learning rate x {factor:g}{knobs}" if text else "wanted: the configured learning rate and knobs"
    changed = Wishes(here.client, here.keys).make(OBJECTIVE, text, BY, told)
    return ObjectiveChanged(changed=changed, **_fields(here))


def _fields(here: Resources) -> dict[str, Any]:
    (wish,) = Wishes(here.client, here.keys).read(OBJECTIVE)
    try:
        wanted = SettingsWanted.model_validate(untrusted.json_object(wish.text or None))
    except ValidationError:
        wanted = SettingsWanted()
    return {"wanted": wanted, "asked_by": wish.by, "asked_at": wish.at, "taken": _taken(here)}


def _taken(here: Resources) -> Taken | None:
    """As the living learner's heartbeat says."""
    status = here.control.status_of(LEARNER)
    try:
        return Taken.model_validate(status["objective"]) if status and "objective" in status else None
    except ValidationError:
        return None
