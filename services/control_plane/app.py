"""The HTTP application: routes over the run's control state.

Handlers are plain functions, so that FastAPI runs them, and with them every call to Redis, on worker threads and
never on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

from fastapi import Depends, FastAPI, Query
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from services.control_plane import problems, schemas
from services.control_plane.access import tokens_of
from services.control_plane.admission import add_admission
from services.control_plane.counting import Counting
from services.control_plane.events import add_events
from services.control_plane.gauges import set_gauges
from services.control_plane.groups import add_groups
from services.control_plane.guard import Guard
from services.control_plane.lag import add_lag
from services.control_plane.letters import add_letters
from services.control_plane.live import Live, add_live
from services.control_plane.objective import add_objective
from services.control_plane.page import add_page
from services.control_plane.resources import BY, LOOK, OPERATE, Here, Resources, Run, State, There, written
from services.control_plane.runs import add_runs
from services.control_plane.series import add_series
from services.control_plane.servers import add_servers
from services.rounds import Rounds
from services.sampler import SLOT_S, Sampler
from services.status import read_status
from shared.config import Config
from shared.keys import Keys
from shared.metrics import ControlPlaneMetrics
from shared.redis_client import connect, server_version

REDIS_TIMEOUT_S = 2.0

SUBJECTS = (
    add_lag,
    add_admission,
    add_objective,
    add_series,
    add_servers,
    add_events,
    add_letters,
    add_groups,
    add_runs,
    add_live,
)

DESCRIPTION = """Where a training run stands, and what its operator wants of it.

The control plane is off the data path: it reads state and writes wishes, and the run goes on when it is down.
"""


def create_app(config: Config) -> FastAPI:
    """The application for one run. Raises ConfigError where nobody could be let in."""
    tokens = tokens_of(config)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[State]:
        client = connect(config, timeout_s=REDIS_TIMEOUT_S)
        metrics = ControlPlaneMetrics()
        sampling = asyncio.create_task(
            _sample(Sampler(client, Keys(config.run.id), config.control_plane.history_bytes))
        )
        yield {"resources": Resources(config, client, Keys(config.run.id), metrics)}
        sampling.cancel()
        client.close()

    app = FastAPI(
        title="trustbatch control plane",
        description=DESCRIPTION,
        version=_version(),
        lifespan=lifespan,
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # to wherever the request says that it came from
        dependencies=[Depends(problems.refuse_unknown_parameters)],
        responses=problems.DESCRIBED,
    )
    problems.install(app)
    app.add_middleware(Guard, tokens=tokens, per_minute=config.control_plane.requests_per_minute)
    app.add_middleware(Counting)
    app.state.live = Live(_status_text)
    add_page(app)
    _add_probes(app)
    _add_api(app)
    for add in SUBJECTS:
        add(app)
    return app


def _add_probes(app: FastAPI) -> None:
    @app.get("/healthz", tags=["probes"], summary="Is the process up?")
    def healthz() -> schemas.Health:
        """Says nothing about Redis: a restart would not bring that back."""
        return schemas.Health()

    @app.get("/readyz", tags=["probes"], summary="Can it do its work?")
    def readyz(here: Here) -> schemas.Readiness:
        """Ready means that Redis answers, is new enough, and lets the run's keys be read; otherwise 503."""
        found = server_version(here.client)
        read_status(here.client, here.keys, events=1)
        return schemas.Readiness(redis_version=".".join(map(str, found)))

    @app.get("/metrics", tags=["probes"], summary="Prometheus metrics", response_class=Response, **LOOK)
    def metrics(here: Here) -> Response:
        """The state that this process reads. Learner and rollout servers have endpoints of their own."""
        set_gauges(here)
        return Response(generate_latest(here.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _add_api(app: FastAPI) -> None:
    @app.get("/v1/status", tags=["run"], summary="Where the run stands", response_model=schemas.Status, **LOOK)
    def status(there: There) -> Response:
        """Phase, versions, processes, backlog, the newest step, evaluations and events."""
        return written(schemas.status_answer(read_status(there.client, there.keys), there.config))

    @app.get("/v1/history", tags=["run"], summary="Step records", response_model=schemas.History, **LOOK)
    def history(
        there: There,
        last: Annotated[int, Query(ge=1, le=20_000, description="How many of the newest steps.")] = 1000,
    ) -> Response:
        """The newest optimizer steps, oldest first."""
        rows = there.control.history(last=last)
        return written(schemas.History(steps=[schemas.Step.model_validate(row) for row in rows]))

    @app.post("/v1/pause", tags=["operator"], summary="Stand still", **OPERATE)
    def pause(here: Here, same_site: problems.SameSite, no_body: problems.NoBody) -> schemas.Paused:
        """Nobody draws or trains until `/v1/resume`; what is being generated is finished. May be repeated."""
        return _wish(here, paused=True)

    @app.post("/v1/resume", tags=["operator"], summary="Go on", **OPERATE)
    def resume(here: Here, same_site: problems.SameSite, no_body: problems.NoBody) -> schemas.Paused:
        """Ends a pause. May be repeated."""
        return _wish(here, paused=False)


async def _sample(sampler: Sampler) -> None:
    """Takes its turn for as long as the application runs; what Redis does not answer now is the next turn's."""
    rounds = Rounds("a sample of the rollout servers")
    while True:
        with rounds:
            await asyncio.to_thread(sampler.sample)
        await asyncio.sleep(SLOT_S / 2)


def _status_text(run: Run) -> str:
    return schemas.status_answer(read_status(run.client, run.keys), run.config).model_dump_json()


def _wish(here: Resources, paused: bool) -> schemas.Paused:
    return schemas.Paused(paused=paused, changed=here.control.set_paused(paused, BY))


def _version() -> str:
    try:
        return version("trustbatch")
    except PackageNotFoundError:  # run from a source tree
        return "0"
