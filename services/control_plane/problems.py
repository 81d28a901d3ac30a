"""Every error of the API as JSON that says what is wrong and what to do."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from services.control_plane.schemas import Problem
from shared.config.explain import cut
from shared.errors import StreamError

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 2

DESCRIBED: dict[int | str, dict[str, Any]] = {
    422: {"model": Problem, "description": "A parameter is unknown or out of its bounds."},
    503: {"model": Problem, "description": "Redis does not answer; ask again."},
}

CLOSED: dict[int | str, dict[str, Any]] = {
    401: {"model": Problem, "description": "No token, or one that is not known."},
    411: {"model": Problem, "description": "A body whose length nobody says."},
    413: {"model": Problem, "description": "A body that is too large to look at."},
    429: {"model": Problem, "description": "Too many requests from one address; Retry-After says when to go on."},
    431: {"model": Problem, "description": "Headers that are too large."},
}

WISHES: dict[int | str, dict[str, Any]] = {
    403: {"model": Problem, "description": "The token may only look, or the request came from another site's page."},
    422: {"model": Problem, "description": "A parameter or a body was given; there are none."},
}


class ForeignSiteError(Exception):
    """A browser sent a request that changes something from a page of another site."""


def install(app: FastAPI) -> None:
    """Registers the handlers."""
    app.add_exception_handler(StreamError, _redis_down)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(ValidationError, _unreadable)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(ForeignSiteError, _foreign)
    app.add_exception_handler(Exception, _broken)


def refuse_unknown_parameters(request: Request) -> None:
    """Query parameters that a route does not have are errors, not silence."""
    route = request.scope.get("route")
    known = _parameters(route.dependant) if isinstance(route, APIRoute) else set()
    unknown = sorted(set(request.query_params) - known)
    if unknown:
        allowed = f"known here: {', '.join(sorted(known))}" if known else "this route takes none"
        raise HTTPException(422, f"unknown parameter {', '.join(unknown)}; {allowed}")


def _parameters(dependant: Dependant) -> set[str]:
    """The query parameters of a route and of all that it depends on."""
    own = {parameter.alias for parameter in dependant.query_params}
    return own.union(*(_parameters(inner) for inner in dependant.dependencies))


def refuse_other_sites(request: Request) -> None:
    """Another site's page in the operator's browser must not be able to change the run."""
    origin = request.headers.get("origin")
    host = request.headers.get("host", "")
    foreign = origin is not None and origin.lower().partition("://")[2] != host.lower()
    if foreign or request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        raise ForeignSiteError


def refuse_body(request: Request) -> None:
    """A wish that would be ignored is an error, not silence."""
    if request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers:
        raise HTTPException(422, f"{request.url.path} takes no body; send the request without one")


KnownParameters = Annotated[None, Depends(refuse_unknown_parameters)]
SameSite = Annotated[None, Depends(refuse_other_sites)]
NoBody = Annotated[None, Depends(refuse_body)]


def problem(status: int, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """One error answer."""
    body = Problem(title=HTTPStatus(status).phrase, status=status, detail=detail)
    return JSONResponse(body.model_dump(), status, headers=headers, media_type=MEDIA_TYPE)


def _redis_down(request: Request, error: Exception) -> JSONResponse:
    if not request.scope.get("role"):  # a stranger, at the readiness probe: no addresses
        return problem(503, "Redis does not answer as it should", {"Retry-After": str(RETRY_AFTER_S)})
    said = str(error).rstrip(".")
    detail = f"{said}. The run itself may go on; check Redis and redis.url, this page recovers by itself."
    return problem(503, detail, {"Retry-After": str(RETRY_AFTER_S)})


def _unreadable(request: Request, error: Exception) -> JSONResponse:
    """What is in Redis is not what this release writes there."""
    assert isinstance(error, ValidationError)
    where = ".".join(str(part) for part in error.errors()[0]["loc"])
    return problem(
        503, f"what Redis holds of this run cannot be read ({error.title}: {where}); was another release here?"
    )


def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    parts = [_mistake(found) for found in error.errors()]
    return problem(422, "; ".join(parts))


def _mistake(found: dict[str, Any]) -> str:
    key, message = ".".join(str(part) for part in found["loc"][1:]), found["msg"].removeprefix("Value error, ")
    return f"{key}: " * bool(key) + f"{message}, not {cut(repr(found.get('input')))}"


def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    possible = (error.headers or {}).get("Allow", "")
    details = {
        404: f"there is no {request.url.path} here; /openapi.json lists what there is",
        405: f"{request.method} is not possible on {request.url.path}; possible: {possible}",
    }
    own = str(error.detail) != HTTPStatus(error.status_code).phrase  # else it is the router's
    detail = str(error.detail) if own else details.get(error.status_code, str(error.detail))
    return problem(error.status_code, detail, dict(error.headers or {}))


def _foreign(request: Request, error: Exception) -> JSONResponse:
    return problem(403, "this request came from another site's page; open the control plane's own page instead")


def _broken(request: Request, error: Exception) -> JSONResponse:
    detail = "the control plane failed to answer; its log says why. The run is not affected."
    return problem(500, detail)
