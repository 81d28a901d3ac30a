"""The rollout server: admit, sync weights, generate a group, reward, append; over and over, many at once.

Admitter    leases prompt indices --> Generator, one task for each group --> stream
Follower    new versions --> Syncer: fetch, load, prove --> the gate, which every group passes before its append
            evaluations --> Evaluator
Heartbeat, LeaseKeeper    threads: say that the server lives, renew its leases

starts in this order:  name, tokenizer and environment, engine, first version proven, then all of the above
stops in this order:   admission, groups in flight (a short grace), leases back, off the list, engine
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Coroutine
from typing import Any

from rollout.admit import DISMISSED, Admitter, end
from rollout.engines.base import Engine
from rollout.engines.renewable import RenewableEngine
from rollout.environments.base import Environment
from rollout.environments.loader import load_environment
from rollout.evaluation import Evaluator
from rollout.experts import check_experts
from rollout.factory import build_engine
from rollout.follow import Follower
from rollout.generate import Generator
from rollout.lag import Dial
from rollout.membership import LeaseKeeper, take_name
from rollout.parts import Parts
from rollout.sampling import check_trainable
from rollout.sync import Syncer
from rollout.tokens import load_tokenizer, stop_token_ids
from rollout.turns import Player
from shared.admission import Admission
from shared.config import Config
from shared.errors import ConfigError, EngineError, SamplingError, TrustbatchError
from shared.types import SamplingSettings

GRACE_S = 3.0  # for groups in flight, when told to stop
REDIS_GOODBYE_S = 1.0
ENGINE_STOP_S = 3.5
ENGINE_POLL_S = 0.1
DEFAULT_MODEL_LEN = 2048  # tokens, for an engine that sets no limit of its own


def training_sampling(config: Config, stop_ids: tuple[int, ...] = ()) -> SamplingSettings:
    """The configured sampling. Raises ConfigError where the learner could not recompute its log-probs."""
    sampling = SamplingSettings(**config.rollout.sampling.model_dump(), stop_token_ids=stop_ids)
    try:
        check_trainable(sampling)
    except SamplingError as error:
        raise ConfigError(f"rollout.{error}") from error
    return sampling


class RolloutServer:
    """One server's life, from `run` to its end."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.over = ""  # the phase in which the run was when it ended this server
        self._stopping = asyncio.Event()
        self._engine: Engine | None = None
        self._environment: Environment | None = None
        self._admitter: Admitter | None = None
        self._follower: Follower | None = None
        self._registered = False
        self._lease_keeper = LeaseKeeper(parts.admission, parts.writer, parts.config.admission.lease_s)

    def stop(self) -> None:
        """Asks for an orderly stop; from the event loop's thread."""
        self._stopping.set()

    async def run(self) -> None:
        """Serves until the run is over or `stop` is called; then stops in order.

        Raises:
            ConfigError: what was asked for cannot work.
            TrustbatchError: anything else that keeps the server from going on.

        """
        training_sampling(self._parts.config)
        serving = asyncio.ensure_future(self._serve())
        told = asyncio.ensure_future(self._stopping.wait())
        grace_s = 0.0
        try:
            await asyncio.wait({serving, told}, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                self.over = serving.result()
                self._parts.log.info("nothing more to do", why=self.over)
            else:
                grace_s = GRACE_S
        except TrustbatchError as error:
            await self._record(error)
            raise
        finally:
            told.cancel()
            await self._end(serving, grace_s)

    async def _serve(self) -> str:
        """From the first word to Redis to the end of the run; returns its phase."""
        parts = self._parts
        await take_name(parts, 2 * parts.config.admission.lease_s)
        self._registered = True
        await parts.patience("return leases of a former life", lambda: _return_leases(parts.admission))
        parts.status.heartbeat.start()
        self._lease_keeper.start()
        engine, environment, sampling = await self._prepare()
        syncer = Syncer(parts, engine)
        dial = Dial(parts)
        follower = self._follower = Follower(parts, syncer, dial)
        while syncer.served < 0:
            version = await follower.first_version()
            if version is None:
                return (await follower.look()).phase
            with parts.status.during("start", f"starting {parts.config.rollout.engine.kind} with version {version}"):
                await syncer.follow(version)
        player = Player(engine, environment, getattr(parts.config.rollout.engine, "max_model_len", DEFAULT_MODEL_LEN))
        evaluator = Evaluator(parts.config, player, environment, parts.server_id, sampling.stop_token_ids)
        generator = Generator(parts, engine, environment, player, syncer, sampling)
        self._admitter = Admitter(parts, lambda: syncer.served, dial.for_lease, generator.run)
        return await _first_of(follower.run(self._admitter, evaluator), self._admitter.run(), _until_dead(engine))

    async def _prepare(self) -> tuple[RenewableEngine, Environment, SamplingSettings]:
        """What takes seconds and needs no version yet."""
        parts, config = self._parts, self._parts.config
        with parts.status.during("start", "loading tokenizer and environment"):
            tokenizer = await asyncio.to_thread(load_tokenizer, config.model.path)
            sampling = training_sampling(config, stop_token_ids(config.model.path, tokenizer))
            self._environment = await asyncio.to_thread(load_environment, config, tokenizer)
            await check_experts(self._environment, config.rollout.experts)
        with parts.status.during("start", f"loading {config.rollout.engine.kind}"):
            first, device = await asyncio.to_thread(build_engine, config, parts.server_id)
            parts.status.on_device(device)
        engine = self._engine = RenewableEngine(first, lambda: build_engine(config, parts.server_id)[0])
        return engine, self._environment, sampling

    async def _record(self, error: TrustbatchError) -> None:
        event = functools.partial(
            self._parts.control.add_event, "rollout server failed", str(error).splitlines()[0], self._parts.server_id
        )
        await self._goodbye("record why", asyncio.to_thread(event), REDIS_GOODBYE_S)

    async def _end(self, serving: asyncio.Future[str], grace_s: float) -> None:
        """Admission first, so that nothing new begins; the engine last, since groups still need it."""
        parts = self._parts
        parts.status.say("stop", "stopping")
        await end(serving)
        if self._admitter is not None:
            await self._goodbye("return leases", self._admitter.stop(grace_s), grace_s + REDIS_GOODBYE_S)
        if self._follower is not None:
            await self._goodbye("give an evaluation back", self._follower.stop(), REDIS_GOODBYE_S)
        if self._registered:  # else the name on the list is another server's
            self._lease_keeper.stop()
            await self._goodbye("leave", asyncio.to_thread(parts.status.heartbeat.stop), REDIS_GOODBYE_S)
        if self.over == DISMISSED:  # not before: until then the mark keeps prompts from a server that leaves
            heard = functools.partial(parts.wishes.dismissed, parts.server_id)
            await self._goodbye("take the drain back", asyncio.to_thread(heard), REDIS_GOODBYE_S)
        if self._engine is not None:
            await self._goodbye("stop the engine", self._engine.stop(), ENGINE_STOP_S)
        if self._environment is not None:
            await self._goodbye("close the environment", self._environment.close(), REDIS_GOODBYE_S)

    async def _goodbye(self, what: str, act: Coroutine[Any, Any, None], deadline_s: float) -> None:
        """One act of the end. If it fails the others still follow; what is left behind runs out by itself."""
        try:
            async with asyncio.timeout(deadline_s):
                await act
        except (TrustbatchError, TimeoutError) as error:
            self._parts.log.warning(f"could not {what}", error=str(error) or f"not done within {deadline_s:g} s")


def _return_leases(admission: Admission) -> None:
    admission.give_back(admission.held())


async def _first_of(*loops: Coroutine[Any, Any, str]) -> str:
    """Runs the loops until one of them ends; its result, or its error."""
    tasks = [asyncio.ensure_future(loop) for loop in loops]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return next(task for task in tasks if task.done()).result()
    finally:
        for task in tasks:
            await end(task)


async def _until_dead(engine: Engine) -> str:
    """Notices the engine's death while nothing is asked of it."""
    while True:
        if (reason := engine.failure) is not None:
            raise EngineError(reason)
        await asyncio.sleep(ENGINE_POLL_S)
