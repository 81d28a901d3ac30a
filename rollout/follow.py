"""Watches the run: follows its versions, answers its evaluations, notices its end."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

from rollout.admit import OVER, Admitter
from rollout.evaluation import Evaluator, servable
from rollout.lag import Dial
from rollout.moments import moment
from rollout.parts import Parts
from rollout.status import component_of
from rollout.sync import Syncer, ancestor, lineage
from shared.control import LEARNER, Phase
from shared.errors import (
    DeadlineError,
    EngineError,
    EnvironmentFailure,
    OutOfMemoryError,
    StoreError,
    UnprovenVersionError,
)
from shared.lag import Moment

POLL_S = 0.03
LEARNER_POLL_S = 5.0
CLAIM_POLL_S = 0.5  # after another server was faster, or the store had nothing
MAX_EVALUATION_FAILURES = 3
DRAIN_DEADLINE_S = 300.0  # for the groups that were begun at another lag


@dataclass(frozen=True)
class View:
    """What a server wants to know of the run."""

    phase: Phase
    latest: int  # -1 before the first published version
    parents: dict[int, int]  # each version and the one a publish before it
    evaluations: list[int]  # versions that wait for one
    step: int = 0  # optimizer steps in the latest version
    groups: int = 0  # that this server has appended
    lag_wish: bytes = b""  # the operator's, as stored


class Follower:
    """One loop, so that no version changes while an evaluation runs."""

    def __init__(self, parts: Parts, syncer: Syncer, dial: Dial) -> None:
        self._parts = parts
        self._syncer = syncer
        self._dial = dial
        self._aimed_lag = 0  # what the newest target was chosen for
        self._deadline_s = parts.config.evaluation.deadline_s
        self._failures: dict[int, int] = {}  # evaluation -> how often it failed here
        self._claim_again_at = 0.0
        self._claimed: int | None = None
        self._learner_seen = self._learner_asked = time.monotonic()

    async def first_version(self) -> int | None:
        """Waits for a version to serve; None if the run ends before there is one."""
        with self._parts.status.during("start", "waiting for the first published version"):
            while True:
                view = await self.look()
                if view.phase in OVER:
                    return None
                if view.latest >= 0:
                    return self._target(view)
                await asyncio.sleep(POLL_S)

    async def run(self, admitter: Admitter, evaluator: Evaluator) -> str:
        """Follows until the run is over; returns the phase.

        Raises:
            UnprovenVersionError, EngineError, StoreError: versions cannot be served.
            DeadlineError: no learner has lived, or groups in flight have not ended, for learner.idle_deadline_s.

        """
        while True:
            view = await self.look()
            if view.phase in OVER:
                return view.phase
            if view.latest < 0:  # Redis has lost what it knew; the learner will say it again
                await asyncio.sleep(POLL_S)
                continue
            target = self._target(view)
            in_place = target == self._syncer.served and self._syncer.gate.is_set()
            if in_place:
                self._settle(admitter)
            if await self._evaluate_one(view, target, admitter, evaluator):
                continue
            if in_place:
                await asyncio.sleep(POLL_S)
            else:
                await self._move(target, admitter)
                admitter.wake()

    def _target(self, view: View) -> int:
        """The version to serve: the latest at the lag that is asked for now."""
        asked = self._dial.turn(view.lag_wish, Moment(view.latest, view.step, view.groups))
        self._aimed_lag = asked.lag
        line = lineage(view.latest, view.parents)
        behind = line.index(self._syncer.served) if self._syncer.served in line else None
        self._parts.status.lags(asked.lag, asked.arm, behind)
        self._parts.metrics.lag_asked.set(asked.lag)
        self._parts.metrics.lag_served.set(math.nan if behind is None else behind)
        return ancestor(view.latest, asked.lag, view.parents)

    async def _move(self, target: int, admitter: Admitter) -> None:
        """Serves the target: in flight where it is the next version, between groups where another lag is asked for.

        A group is drawn at the lag that it was leased for: an older version must not get in between.
        """
        if not self._syncer.gate.is_set():  # behind a shut gate no group ends
            await self._follow(target)
        elif self._dial.served_lag in (-1, self._aimed_lag):
            await self._follow(target, moment(self._parts, admitter))
        else:
            try:
                await self._follow(target, self._between_lags(admitter))
            except TimeoutError:
                self._parts.log.warning("groups in flight do not end: another lag waits", lag=self._dial.served_lag)

    @asynccontextmanager
    async def _between_lags(self, admitter: Admitter) -> AsyncIterator[None]:
        """The moment for the weights of another lag; before anything is admitted again, that lag is the served one."""
        lag = self._aimed_lag
        drained = admitter.drained(DRAIN_DEADLINE_S)
        with self._parts.status.during("sync", f"finishing groups, to serve at lag {lag}"):
            await drained.__aenter__()
        try:
            yield
            self._dial.served_lag = lag
        finally:
            await drained.__aexit__(None, None, None)

    def _settle(self, admitter: Admitter) -> None:
        """What is served is what the lag asks for, too."""
        self._syncer.settle()
        if self._dial.served_lag != self._aimed_lag:
            self._dial.served_lag = self._aimed_lag
            admitter.wake()

    async def _follow(self, target: int, moment: AbstractAsyncContextManager[None] | None = None) -> None:
        lag = self._aimed_lag
        if target != self._syncer.served or not self._syncer.gate.is_set():
            await self._syncer.follow(target, moment)
        if target == self._syncer.served:
            self._dial.served_lag = lag

    async def look(self) -> View:
        """The run's state now. Raises StreamError, and DeadlineError where the learner has been gone too long."""
        control = self._parts.control

        def read() -> View:
            phase, latest = control.phase()[0], control.latest()
            if latest is None:
                return View(phase, -1, {}, [])
            parents, wish = control.descent(), control.lag_wish().text
            groups, jobs = self._parts.writer.counted(), control.pending_evaluations()
            return View(phase, latest.policy_version, parents, jobs, latest.step, groups, wish)

        view = await self._parts.patience("say where the run stands", read)
        await self._check_learner()
        return view

    async def stop(self) -> None:
        """Gives back an evaluation that was begun, so that another server can answer it at once."""
        if (job := self._claimed) is not None:
            await asyncio.to_thread(self._parts.control.release_evaluation, job)

    async def _check_learner(self) -> None:
        now = time.monotonic()
        if now - self._learner_asked < LEARNER_POLL_S:
            return
        self._learner_asked = now
        status = await self._parts.patience(
            "say whether the learner lives", lambda: self._parts.control.status_of(LEARNER)
        )
        if status is not None:
            self._learner_seen = now
        patience_s = self._parts.config.learner.idle_deadline_s
        if now - self._learner_seen > patience_s:
            raise DeadlineError(f"waited {patience_s:g} s for a learner's heartbeat, in vain")

    async def _evaluate_one(self, view: View, target: int, admitter: Admitter, evaluator: Evaluator) -> bool:
        """Answers one pending evaluation if there is one for this server; True if it tried."""
        if time.monotonic() < self._claim_again_at or admitter.draining:
            return False
        given_up = [job for job, n in self._failures.items() if n >= MAX_EVALUATION_FAILURES]
        wanted = [job for job in view.evaluations if job not in given_up]
        job = servable(wanted, self._syncer.served)
        detour = job is None and self._syncer.served == target
        if detour:
            job = await self._beyond(wanted, [v for v in lineage(view.latest, view.parents) if v > target])
        if job is None or not await self._claim(job):
            return False
        self._claimed = job
        try:
            await (self._detour(job, target, admitter, evaluator) if detour else self._answer(job, evaluator))
        except (EnvironmentFailure, EngineError, StoreError, OutOfMemoryError, TimeoutError) as error:
            await self._give_up(job, error)
        self._claimed = None
        return True

    async def _beyond(self, wanted: list[int], newer: list[int]) -> int | None:
        """The first wanted version beyond this server's lag that the store has."""
        asked = [version for version in wanted if version in newer]
        stored = await self._syncer.stored(asked)
        if asked and not stored:  # the store may be far away, and need not be asked at every look
            self._claim_again_at = time.monotonic() + CLAIM_POLL_S
        return stored[0] if stored else None

    async def _claim(self, job: int) -> bool:
        claim, component = self._parts.control.claim_evaluation, component_of(self._parts.server_id)
        if await self._parts.patience("claim an evaluation", lambda: claim(job, self._deadline_s, component)):
            return True
        self._claim_again_at = time.monotonic() + CLAIM_POLL_S
        return False

    async def _answer(self, job: int, evaluator: Evaluator) -> None:
        served = self._syncer.served
        with self._parts.status.during("evaluation", f"evaluating version {served}"):
            async with asyncio.timeout(self._deadline_s):
                result = await evaluator.evaluate(served)
        finish = self._parts.control.finish_evaluation
        await self._parts.patience("store an evaluation", lambda: finish(job, result))
        self._parts.log.info("evaluated", policy_version=served, accuracy=result.accuracy, seconds=result.seconds)

    async def _detour(self, job: int, target: int, admitter: Admitter, evaluator: Evaluator) -> None:
        """Evaluates a version that lies beyond this server's lag: no group may be drawn by it."""
        with self._parts.status.during("evaluation", f"draining, to evaluate version {job}"):
            async with admitter.drained(self._deadline_s):
                await self._syncer.serve(job)
                try:
                    await self._answer(job, evaluator)
                finally:
                    await self._syncer.serve(target)

    async def _give_up(self, job: int, error: Exception) -> None:
        refused = isinstance(error, UnprovenVersionError)  # it was tried often enough, in a fresh engine too
        self._failures[job] = MAX_EVALUATION_FAILURES if refused else self._failures.get(job, 0) + 1
        text = f"evaluation of version {job}: {error or f'not done within {self._deadline_s:g} s'}"
        self._parts.log.warning("an evaluation failed", policy_version=job, error=text)
        release = self._parts.control.release_evaluation
        await self._parts.patience("give an evaluation back", lambda: release(job))
        await self._parts.record("evaluation failed", text)
