"""One server of the load generator: lease, make, append, over and over, like a rollout server without an engine."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from services.load.groups import Shape, make_group, poisoned
from services.load.pace import AppendLog, Budget, Pace
from shared.admission import Admission
from shared.budgets import credit
from shared.codec import encode_group
from shared.config import Config
from shared.control import LEARNER, ControlState
from shared.errors import AccessError, DeadlineError, OutOfMemoryError, StreamError
from shared.heartbeat import Heartbeat
from shared.keys import Keys
from shared.log import Logger
from shared.process import Deadline
from shared.redis_client import connect
from shared.stream import Appended, GroupWriter
from shared.types import group_id_for

OVER = ("finished", "failed")
FIRST_POLL_S, LONGEST_POLL_S = 0.01, 0.1  # after a refusal
FIRST_RETRY_S, LONGEST_RETRY_S = 0.01, 0.3  # during an outage
LEARNER_POLL_S = 5.0
VERSION_S = 0.02  # how old the latest version may be that a group is drawn by

T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """What all servers of the process share."""

    config: Config
    shape: Shape
    pace: Pace
    budget: Budget
    appends: AppendLog
    log: Logger
    stopping: threading.Event


class LoadServer:
    """Appends groups until the run is over, the count is reached or somebody asks it to stop."""

    def __init__(self, job: Job, server_id: str) -> None:
        config = job.config
        self._job = job
        self.server_id = server_id
        client, keys = connect(config), Keys(config.run.id)
        self._control = ControlState(client, keys)
        self._admission = Admission(client, keys, server_id, credit(config))
        self._writer = GroupWriter(client, keys, server_id)
        self._heartbeat = Heartbeat(
            self._control,
            f"rollout:{server_id}",
            config.admission.lease_s,
            kind="rollout",
            pid=os.getpid(),
            host=socket.gethostname(),
            policy_version=-1,
            lag=0,
            in_flight=0,
            groups=0,
            tokens=0,
            engine="load",
        )
        self._groups = 0
        self._version, self._version_asked = -1, -VERSION_S
        self._doubtful = True  # there may be leases that nobody knows of: of a former life, or of before an outage
        self._compared_at = self._renewed_at = self._learner_asked = self._learner_seen = time.monotonic()
        self.failure: Exception | None = None

    def run(self) -> None:
        """The server's whole life; what ended it early is in `failure`."""
        self._heartbeat.start()
        try:
            self._work()
        except Exception as error:  # noqa: BLE001 - a thread's error is the process's to tell
            self.failure = error
            self._job.stopping.set()
        self._heartbeat.stop()

    def _work(self) -> None:
        poll_s = FIRST_POLL_S
        try:
            while not self._job.stopping.is_set() and not self._job.budget.spent:
                reason = self._fill()
                if reason in OVER:
                    break
                poll_s = min(2 * poll_s, LONGEST_POLL_S) if reason else FIRST_POLL_S
                if reason:
                    self._say(reason if reason.startswith("paused") else f"waiting for {reason}")
                    self._job.stopping.wait(poll_s)
        finally:
            self._goodbye()

    def _fill(self) -> str:
        """Asks for prompts and appends a group for each; returns why it got none, '' if it got some."""
        budget = self._job.budget
        want = budget.take(self._job.config.rollout.groups_in_flight)
        stored, reason = 0, "the last groups of the other servers"
        try:
            if want:
                indices, reason = self._patiently("ask for prompts", lambda: self._lease(want))
                for index in indices:
                    if self._job.stopping.is_set():
                        break
                    stored += self._append(index)
        finally:
            budget.settle(stored, want - stored)
        self._check_learner()
        return "" if stored else reason

    def _latest(self) -> int:
        """The latest version, asked for at most every VERSION_S; -1 before the first."""
        if time.monotonic() - self._version_asked > VERSION_S:
            latest = self._control.latest()
            self._version = latest.policy_version if latest else -1
            self._version_asked = time.monotonic()
            self._heartbeat.update(policy_version=self._version)
        return self._version

    def _lease(self, want: int) -> tuple[tuple[int, ...], str]:
        now = time.monotonic()
        if self._doubtful or now - self._compared_at > self._job.config.admission.lease_s:
            self._return_leases()
            self._doubtful = False
            self._compared_at = now
        if (version := self._latest()) < 0:
            return (), "the first published version"
        grant = self._admission.lease(want, version)
        self._renewed_at = now
        return grant.indices, grant.reason

    def _append(self, index: int) -> int:
        """Appends one group when its turn has come, drawn by the version of then; 1 if it is in the stream."""
        self._rest(self._job.pace.due_in())
        if self._job.stopping.is_set():
            return 0
        self._say("appending groups")
        run_id, shape, at = self._job.config.run.id, self._job.shape, time.time()
        version = self._patiently("ask for the latest version", self._latest)
        group = make_group(run_id, index, version, self.server_id, shape, at)
        poison = shape.poison_of(index)
        payload = poisoned(group, poison) if poison else encode_group(group)
        sent = 0

        def send() -> Appended:
            nonlocal sent
            sent += 1
            return self._writer.append(index, group_id_for(run_id, index), payload)

        result = self._patiently("append a group", send)
        self._job.appends.write(
            index=index, result=result.value, at=time.time(), server=self.server_id, sent=sent, poison=poison
        )
        self._groups += 1
        self._heartbeat.update(groups=self._groups, tokens=self._groups * shape.group_size * shape.tokens)
        return int(result is not Appended.LEASE_LOST)

    def _rest(self, seconds: float) -> None:
        """Waits for the next turn; leases that wait too are renewed."""
        ends = time.monotonic() + seconds
        while not self._job.stopping.is_set():
            if time.monotonic() - self._renewed_at > self._job.config.admission.lease_s / 3:
                self._patiently("renew leases", self._admission.renew)
                self._renewed_at = time.monotonic()
            if (left := ends - time.monotonic()) <= 0:
                return
            self._job.stopping.wait(min(left, self._job.config.admission.lease_s / 6))

    def _patiently(self, what: str, call: Callable[[], T]) -> T:
        """Repeats a call through an outage or a full Redis. Raises DeadlineError after learner.idle_deadline_s."""
        deadline: Deadline | None = None
        retry_s = FIRST_RETRY_S
        while True:
            try:
                return call()
            except AccessError:
                raise
            except StreamError as error:
                if self._job.stopping.is_set():
                    raise
                full = isinstance(error, OutOfMemoryError)
                where = "room in Redis, which is at maxmemory," if full else "Redis"
                self._say(f"waiting for {where} to {what}")
                deadline = deadline or Deadline(f"{where} to {what}", self._job.config.learner.idle_deadline_s)
                deadline.check()
                self._doubtful = True
                self._job.stopping.wait(retry_s)
                retry_s = min(2 * retry_s, LONGEST_RETRY_S)

    def _check_learner(self) -> None:
        now = time.monotonic()
        if now - self._learner_asked < LEARNER_POLL_S:
            return
        self._learner_asked = now
        if self._patiently("see whether the learner lives", lambda: self._control.status_of(LEARNER)) is not None:
            self._learner_seen = now
        patience_s = self._job.config.learner.idle_deadline_s
        if now - self._learner_seen > patience_s:
            raise DeadlineError(f"waited {patience_s:g} s for a learner's heartbeat, in vain")

    def _say(self, state: str) -> None:
        if state != self._heartbeat.status["state"]:
            self._job.log.info("state", server_id=self.server_id, state=state)
        self._heartbeat.set_state(state)

    def _return_leases(self) -> None:
        self._admission.give_back(self._admission.held())

    def _goodbye(self) -> None:
        try:
            self._return_leases()
        except StreamError as error:  # they run out by themselves
            self._job.log.warning("could not return leases", server_id=self.server_id, error=str(error))
