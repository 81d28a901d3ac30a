"""Rollout servers over HTTP: what each does."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import FastAPI, Path
from starlette.exceptions import HTTPException

from services.control_plane.resources import LOOK, Run, There
from services.control_plane.schemas import Answer, Number
from services.fleet import Server, read_servers


class Floor(Answer):
    """Numerics floor of the served version: how far engine and learner differ on the same weights."""

    mean_nats: Number
    max_nats: Number
    token_ess: Number


class Refused(Answer):
    """A version that the server cannot prove, so that it generates nothing."""

    policy_version: int
    nats: Number
    """By how much its probe is off."""


class ServerAnswer(Answer):
    """One rollout server; what it does not report is null."""

    server_id: str
    alive: bool
    """False: it did not leave in order and its heartbeat ran out."""
    state: str
    """What it does or what it waits for."""
    policy_version: int | None
    """The version that it serves, -1 for none yet."""
    latest: int | None
    """The newest published version."""
    lag_asked: int | None
    """Versions behind the newest that it is asked to serve."""
    lag_served: int | None
    """Versions that what it serves is behind the newest; null where that is none of its ancestors."""
    arm: Literal["", "control"]
    """`control`: at lag 0 on purpose, while others lag."""
    floor: Floor
    in_flight: int | None
    """Groups being generated."""
    groups: int | None
    """Groups appended since it began."""
    last_progress_at: Number
    """Unix seconds at which anything that it says of itself changed."""
    refused: Refused | None
    draining: bool
    """An operator wants it to finish what it has and to take nothing new."""
    drained: bool
    """It has finished: stopping it costs nothing."""
    host: str | None
    device: str | None


class Servers(Answer):
    """Every rollout server that did not leave in order, by its id."""

    servers: list[ServerAnswer]


ServerId = Annotated[str, Path(pattern=r"^[!-~]{1,200}$", description="Of `/v1/servers`.")]


def add_servers(app: FastAPI) -> None:
    """The routes."""

    @app.get("/v1/servers", tags=["servers"], summary="Rollout servers", **LOOK)
    def servers(there: There) -> Servers:
        """What each serves, how far behind, how exactly, and what it does."""
        newest = _newest(there)
        return Servers(servers=[_answer(server, newest) for server in read_servers(there.control)])

    @app.get("/v1/servers/{server_id}", tags=["servers"], summary="One rollout server", **LOOK)
    def server(there: There, server_id: ServerId) -> ServerAnswer:
        """The same of one alone."""
        return _answer(found(there, server_id), _newest(there))


def found(there: Run, server_id: str) -> Server:
    """The server of this id. Raises HTTPException where there is none."""
    for server in read_servers(there.control):
        if server.server_id == server_id:
            return server
    raise HTTPException(404, f"there is no rollout server {server_id}; /v1/servers lists those that there are")


def _newest(there: Run) -> int | None:
    latest = there.control.latest()
    return latest.policy_version if latest else None


def _answer(server: Server, newest: int | None) -> ServerAnswer:
    values = server.values
    refused = values.get("refused_version")
    return ServerAnswer(
        server_id=server.server_id,
        alive=server.alive,
        state=server.state,
        policy_version=values.get("policy_version"),
        latest=newest,
        lag_asked=values.get("lag"),
        lag_served=values.get("lag_served"),
        arm="control" if values.get("arm") == "control" else "",
        floor=Floor(
            mean_nats=values.get("floor_mean_nats"),
            max_nats=values.get("proof_max_nats"),
            token_ess=values.get("floor_token_ess"),
        ),
        in_flight=values.get("in_flight"),
        groups=values.get("groups"),
        last_progress_at=values.get("progress_at"),
        refused=None if refused is None else Refused(policy_version=refused, nats=values.get("refused_nats")),
        draining=server.draining,
        drained=server.drained,
        host=values.get("host"),
        device=values.get("device"),
    )
