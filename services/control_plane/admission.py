"""Budgets of admission over HTTP: how much may be asked for ahead of training, for now."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Body, FastAPI
from pydantic import BaseModel, ByteSize, ConfigDict, Field
from starlette.exceptions import HTTPException

from services.control_plane import problems
from services.control_plane.resources import BY, LOOK, OPERATE, Here, Resources
from services.control_plane.schemas import Answer, Number, Problem
from shared.budgets import Budgets, budgets, least_bytes
from shared.wishes import ADMISSION, Wishes

CHANGED: dict[str, Any] = OPERATE | {
    "responses": OPERATE["responses"]
    | {
        400: {"model": Problem, "description": "A body that is no JSON."},
        422: {"model": Problem, "description": "More than the configuration allows, or so little that nothing goes."},
    }
}


class BudgetsWanted(BaseModel):
    """What is wanted; a key that is left away or null: as configured."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    max_staleness: int | None = Field(None, ge=0, le=4096, strict=True)
    """Versions of credit, less one. Groups that were asked for under another value are trained on all the same."""
    max_bytes: ByteSize | None = Field(None, ge=0)
    """Bytes that the stream may hold in Redis: a number, or a text such as 64MiB."""


class Admission(Answer):
    """How much may be asked for ahead of training."""

    max_staleness: int
    """Versions beyond the lag that was asked for."""
    max_bytes: int
    configured_max_staleness: int
    """The most that can be wanted (admission.max_staleness)."""
    configured_max_bytes: int
    """The most that can be wanted (admission.max_bytes)."""
    least_max_bytes: int
    """The least: with less no batch could be complete."""
    asked_by: str
    """Who wanted it; empty: the configuration."""
    asked_at: Number
    """Unix seconds."""


class AdmissionChanged(Admission):
    """The same, from every server's next lease on."""

    changed: bool
    """False where it was so already."""


EXAMPLE = {"max_staleness": {"summary": "Two versions of credit", "value": {"max_staleness": 1}}}
Wanted = Annotated[BudgetsWanted, Body(openapi_examples=EXAMPLE)]


def add_admission(app: FastAPI) -> None:
    """The routes."""

    @app.get("/v1/admission", tags=["run"], summary="How much may be asked for ahead", **LOOK)
    def admission(here: Here) -> Admission:
        """The budgets that count now, the most and the least that can be wanted, and who wanted them."""
        return Admission(**_fields(here))

    @app.put("/v1/admission", tags=["operator"], summary="Want smaller budgets", **CHANGED)
    def put(here: Here, same_site: problems.SameSite, wanted: Wanted) -> AdmissionChanged:
        """Counts with every server's next lease, and across restarts. May be repeated."""
        return _wish(here, _checked(here, wanted))

    @app.delete("/v1/admission", tags=["operator"], summary="Want the configured budgets again", **CHANGED)
    def delete(here: Here, same_site: problems.SameSite, no_body: problems.NoBody) -> AdmissionChanged:
        """Takes back what was wanted while the run went on. May be repeated."""
        return _wish(here, budgets(here.config, b""))


def _checked(here: Resources, wanted: BudgetsWanted) -> Budgets:
    configured, least = budgets(here.config, b""), least_bytes(here.config)
    asked = Budgets(
        configured.max_staleness if wanted.max_staleness is None else wanted.max_staleness,
        configured.max_bytes if wanted.max_bytes is None else int(wanted.max_bytes),
    )
    for name in ("max_staleness", "max_bytes"):
        most = getattr(configured, name)
        if getattr(asked, name) > most:
            text = f"{name}: at most {most:,}, which admission.{name} allows; for more, raise that and start again"
            raise HTTPException(422, text)
    if asked.max_bytes < least:
        raise HTTPException(422, f"max_bytes: at least {least:,}, or no batch could ever be complete")
    return asked


def _wish(here: Resources, wanted: Budgets) -> AdmissionChanged:
    told = f"servers may be {wanted.max_staleness} versions ahead, and the stream may hold {wanted.max_bytes:,} bytes"
    changed = Wishes(here.client, here.keys).make(ADMISSION, wanted.wish(here.config), BY, told)
    return AdmissionChanged(changed=changed, **_fields(here))


def _fields(here: Resources) -> dict[str, Any]:
    (wish,) = Wishes(here.client, here.keys).read(ADMISSION)
    now, configured = budgets(here.config, wish.text), budgets(here.config, b"")
    return {
        "max_staleness": now.max_staleness,
        "max_bytes": now.max_bytes,
        "configured_max_staleness": configured.max_staleness,
        "configured_max_bytes": configured.max_bytes,
        "least_max_bytes": min(least_bytes(here.config), configured.max_bytes),
        "asked_by": wish.by,
        "asked_at": wish.at,
    }
