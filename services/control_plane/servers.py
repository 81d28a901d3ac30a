"""Rollout servers over HTTP: what each does, draining one, and taking it off the list."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import FastAPI, Path
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from services.control_plane import problems
from services.control_plane.resources import BY, LOOK, OPERATE, Here, Resources, Run, There, written
from services.control_plane.schemas import Answer, Number, Problem
from services.fleet import Server, read_server, read_servers
from shared.wishes import Wishes, incarnation


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


class Drained(Answer):
    """What is wanted of a server."""

    server_id: str
    draining: bool
    """It finishes what it has, takes nothing new, and then holds no lease."""
    changed: bool
    """False where that was wanted already."""


class Removed(Answer):
    """What became of a server that is to leave."""

    server_id: str
    gone: bool
    """True: it is off the list. False: it lives, and leaves as soon as it hears of it."""


NOT_DRAINED: dict[str, Any] = OPERATE | {
    "responses": OPERATE["responses"]
    | {
        404: {"model": Problem, "description": "There is no such server."},
        409: {"model": Problem, "description": "The server lives and has not drained, or too many drain."},
    }
}
ONE = LOOK | {"responses": LOOK["responses"] | {404: {"model": Problem, "description": "There is no such server."}}}
ServerId = Annotated[str, Path(pattern=r"^[!-~]{1,200}$", description="Of `/v1/servers`.")]


def add_servers(app: FastAPI) -> None:
    """The routes."""

    @app.get("/v1/servers", tags=["servers"], summary="Rollout servers", response_model=Servers, **LOOK)
    def servers(there: There) -> Response:
        """What each serves, how far behind, how exactly, and what it does."""
        newest = _newest(there)
        return written(Servers(servers=[_answer(server, newest) for server in read_servers(there.client, there.keys)]))

    @app.get("/v1/servers/{server_id}", tags=["servers"], summary="One rollout server", **ONE)
    def server(there: There, server_id: ServerId) -> ServerAnswer:
        """The same of one alone."""
        return _answer(found(there, server_id), _newest(there))

    @app.post("/v1/servers/{server_id}/drain", tags=["operator"], summary="Take nothing new", **NOT_DRAINED)
    def drain(here: Here, same_site: problems.SameSite, no_body: problems.NoBody, server_id: ServerId) -> Drained:
        """It finishes the groups that it has and takes no new ones, across restarts too. May be repeated."""
        found(here, server_id)
        changed = Wishes(here.client, here.keys).drain(server_id, BY, True)
        return Drained(server_id=server_id, draining=True, changed=changed)

    @app.post("/v1/servers/{server_id}/undrain", tags=["operator"], summary="Take groups again", **NOT_DRAINED)
    def undrain(here: Here, same_site: problems.SameSite, no_body: problems.NoBody, server_id: ServerId) -> Drained:
        """Ends a drain. May be repeated."""
        wishes = Wishes(here.client, here.keys)
        if server_id not in wishes.draining():
            found(here, server_id)
        return Drained(server_id=server_id, draining=False, changed=wishes.drain(server_id, BY, False))

    @app.delete("/v1/servers/{server_id}", tags=["operator"], summary="Take off the list", **NOT_DRAINED)
    def remove(here: Here, same_site: problems.SameSite, no_body: problems.NoBody, server_id: ServerId) -> Removed:
        """A dead one is forgotten: leases that it held run out. One that lives has to be drained, and then ends."""
        return _remove(here, found(here, server_id))


def _remove(here: Resources, server: Server) -> Removed:
    wishes, name = Wishes(here.client, here.keys), server.server_id
    if not server.alive:
        wishes.removed(name, BY)
        return Removed(server_id=name, gone=True)
    if not server.drained:
        raise HTTPException(
            409, f"{name} lives and works: POST /v1/servers/{name}/drain first, and wait until /v1/servers says drained"
        )
    wishes.dismiss(name, incarnation(server.values), BY)
    return Removed(server_id=name, gone=False)


def found(there: Run | Resources, server_id: str) -> Server:
    """The server of this id. Raises HTTPException where there is none."""
    if (server := read_server(there.client, there.keys, server_id)) is not None:
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
