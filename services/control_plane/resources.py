"""What the handlers share: the run's configuration and Redis, and what the description says of every route."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, TypedDict, cast

from fastapi import Depends, Query, Request, Security
from fastapi.responses import Response
from fastapi.security import HTTPBearer
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from services.control_plane import problems
from shared.config import Config
from shared.config.run import RUN_ID
from shared.control import ControlState
from shared.keys import Keys
from shared.metrics import ControlPlaneMetrics
from shared.redis_client import Client
from shared.runs import registered

# What the description of the API says of a route; the guard is what sees to it.
LOOK: dict[str, Any] = {
    "dependencies": [Security(HTTPBearer(auto_error=False, description="One of the two tokens."))],
    "responses": problems.CLOSED,
}
BY = "operator"  # who wants what is asked for with the token that may operate
OPERATE = LOOK | {"responses": problems.CLOSED | problems.WISHES}


@dataclass
class Resources:
    """What the handlers need; made when the application starts, closed when it stops."""

    config: Config
    client: Client
    keys: Keys
    metrics: ControlPlaneMetrics

    @property
    def control(self) -> ControlState:
        """The run's control state."""
        return ControlState(self.client, self.keys)

    @property
    def run(self) -> Run:
        """The run that this control plane is for."""
        return Run(self.config, self.client, self.keys)


class State(TypedDict):
    """The application's state."""

    resources: Resources


def written(answer: BaseModel) -> Response:
    """A large answer as it is: FastAPI would make and check it twice more."""
    return Response(answer.model_dump_json(), media_type="application/json")


def resources_of(request: Request) -> Resources:
    """The application's resources."""
    return cast(Resources, request.state.resources)


Here = Annotated[Resources, Depends(resources_of)]


@dataclass(frozen=True)
class Run:
    """The run that a request looks at: that of the configuration, or another one in the same Redis."""

    config: Config  # its own learner.steps, all else as in this control plane's run
    client: Client
    keys: Keys

    @property
    def control(self) -> ControlState:
        """Its control state."""
        return ControlState(self.client, self.keys)


def run_of(
    here: Here,
    run: Annotated[
        str | None, Query(pattern=RUN_ID, description="Another run in the same Redis; `/v1/runs` lists them.")
    ] = None,
) -> Run:
    """The run that is asked for. Raises HTTPException where no learner has ever started it."""
    if run in (None, here.keys.run_id):
        return here.run
    known = registered(here.client).get(run)
    if known is None:
        raise HTTPException(404, f"there is no run {run} in this Redis; /v1/runs lists those that there are")
    learner = here.config.learner
    steps = learner.model_copy(update={"steps": known.steps})
    return Run(here.config.model_copy(update={"learner": steps}), here.client, Keys(run))


There = Annotated[Run, Depends(run_of)]
