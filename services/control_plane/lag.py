"""The lag dial over HTTP: what rollout servers are asked for, and asking for something else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import Body, FastAPI, Query, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from services.control_plane import problems
from services.control_plane.access import Role
from services.control_plane.resources import BY, LOOK, OPERATE, Here, Resources, written
from services.control_plane.schemas import Answer, Number, Problem
from services.lag import Dialled, LagRefusedError, clear_lag, read_lag, set_lag, with_server
from shared.config.lag import LagSetting, ServerLag
from shared.errors import ConfigError

TURNED: dict[str, Any] = OPERATE | {
    "responses": OPERATE["responses"]
    | {
        400: {"model": Problem, "description": "A body that is no JSON."},
        409: {"model": Problem, "description": "The run has not begun, or is finished."},
        422: {"model": Problem, "description": "No such lag, or one beyond what the run keeps versions for."},
    }
}


class ServerLags(Answer):
    """What one living rollout server is asked for, and what it serves."""

    server_id: str
    asked: int | None
    """Versions behind the newest; null before it has looked."""
    arm: Literal["", "control"]
    """`control`: at lag 0 on purpose, while others lag."""
    served: int | None
    """Versions that what it serves is behind the newest; null where it serves no ancestor of that (yet)."""
    policy_version: int | None
    """The version that it serves, -1 for none yet."""


class Lag(Answer):
    """What rollout servers are asked for."""

    setting: LagSetting
    """As short as it can be: a number or a text, or a section where dwell, control_share or servers are set."""
    text: str
    """The setting in words."""
    asked_by: str
    """Who asked for it; empty: the configuration."""
    asked_at: Number
    """Unix seconds."""
    max_lag: int
    """The largest lag that can be asked for: what the run keeps versions for."""
    may_set: bool
    """Whether who asks may set it."""
    servers: list[ServerLags]


class LagTurned(Lag):
    """What rollout servers are asked for from their next group on."""

    changed: bool
    """False where it was asked for already."""


Wanted = Annotated[LagSetting, Body(description="A number, a text such as uniform:0:16, or a section.")]
Server = Annotated[
    str | None, Query(pattern=r"^[!-~]{1,200}$", description="Of this rollout server alone; all others stay as asked.")
]


def add_lag(app: FastAPI) -> None:
    """The routes."""

    @app.get("/v1/lag", tags=["run"], summary="What rollout servers lag by", response_model=Lag, **LOOK)
    def lag(here: Here, request: Request) -> Response:
        """The setting, who asked for it, and what every living rollout server is asked for and serves."""
        return written(Lag(**_fields(here, request)))

    @app.put("/v1/lag", tags=["operator"], summary="Ask for another lag", **TURNED)
    def turn(
        here: Here, same_site: problems.SameSite, request: Request, wanted: Wanted, server: Server = None
    ) -> LagTurned:
        """Holds from every server's next group on, and across restarts. May be repeated."""
        changed = _refusable(lambda: _turn(here, wanted, server))
        return LagTurned(changed=changed, **_fields(here, request))

    @app.delete("/v1/lag", tags=["operator"], summary="Ask for the configured lag again", **TURNED)
    def clear(here: Here, same_site: problems.SameSite, no_body: problems.NoBody, request: Request) -> LagTurned:
        """Takes back what was asked for while the run went on. May be repeated."""
        changed = _refusable(lambda: clear_lag(here.config, here.control, BY))
        return LagTurned(changed=changed, **_fields(here, request))


def _turn(here: Resources, wanted: LagSetting, server: str | None) -> bool:
    if server is None:
        return set_lag(here.config, here.control, wanted, BY)
    if wanted.servers:
        raise ConfigError("servers: leave it away where server= says whose lag it is")
    own = ServerLag(lag=wanted.lag, dwell=wanted.dwell, control_share=wanted.control_share)
    now = read_lag(here.config, here.control)
    return set_lag(here.config, here.control, with_server(now.operators, server, own), BY, now.wish)


def _fields(here: Resources, request: Request) -> dict[str, Any]:
    dialled = read_lag(here.config, here.control)
    return {
        "setting": dialled.setting,
        "text": str(dialled.setting),
        "asked_by": dialled.by,
        "asked_at": dialled.at,
        "max_lag": dialled.max_lag,
        "may_set": request.scope["role"] >= Role.OPERATE,
        "servers": _servers(dialled),
    }


def _servers(dialled: Dialled) -> list[ServerLags]:
    return [
        ServerLags(
            server_id=name,
            asked=values.get("lag"),
            arm="control" if values.get("arm") == "control" else "",
            served=values.get("lag_served"),
            policy_version=values.get("policy_version"),
        )
        for name, values in sorted(dialled.servers.items())
    ]


def _refusable(turn: Callable[[], bool]) -> bool:
    """Turns the dial; what cannot be is the client's to hear."""
    try:
        return turn()
    except ConfigError as error:
        raise HTTPException(422, str(error)) from None
    except LagRefusedError as error:
        raise HTTPException(409, str(error)) from None
