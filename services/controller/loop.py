"""The thread in a control plane that looks, decides and acts, while it holds the lease."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from secrets import token_hex
from threading import Event, Thread
from typing import Any

from pydantic import TypeAdapter, ValidationError

from services.controller.decide import Action, Memory, Seen, decide, setting_of
from services.controller.evidence import floor_of
from services.controller.wishes import corrected, fields_of, follow, wanted_by_operator
from services.rounds import Rounds
from shared.config import Config
from shared.control import ControlState
from shared.keys import Keys
from shared.log import Logger
from shared.redis_client import Client
from shared.steering import OF_PROCESS, Steering, Wanted
from shared.stream import backlog

LOOK_S = 1.0
LEASE_S = 15.0
ROWS = 64  # looked at once; what was missed before them makes no difference

_MEMORY = TypeAdapter(Memory)


class Controller:
    """Acts on one run. `look` is one round of it."""

    def __init__(self, config: Config, client: Client, who: str, log: Logger) -> None:
        self._config = config
        self._client = client
        self._keys = Keys(config.run.id)
        self._who = f"{who}{OF_PROCESS}{token_hex(4)}"  # two of one name are two
        self._log = log
        self._steering = Steering(client, self._keys)
        self._control = ControlState(client, self._keys)
        self._ended = Event()
        self._thread = Thread(target=self._run, name="controller", daemon=True)

    def start(self) -> Controller:
        """Begins to look, every second."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Ends the thread; the lease runs out, and another control plane goes on."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self) -> None:
        """Does what is to be done now, if anything. Raises StreamError: then nothing was done."""
        if not self._steering.claim(self._who, LEASE_S):
            return
        latest = self._control.latest()
        if latest is None:
            return
        before, wishes, now = remembered(self._steering.state()), self._steering.wishes(), time.time()
        memory, told = follow(before, wishes, latest.policy_version)
        if told:
            self._write(memory, {}, {}, None, told)
            return
        memory, fields = corrected(self._config, memory, wishes, now)
        if fields:
            most = setting_of(memory, wanted_by_operator(self._config, memory)).lag
            text = f"the configuration has changed: servers are to lag by at most {most} versions"
            self._write(memory, asdict(wishes), fields, None, text)
        elif wishes.paused != "1":
            self._decide(before, memory, wishes, latest.policy_version)

    def _decide(self, before: Memory, memory: Memory, wishes: Wanted, version: int) -> None:
        rows = self._new_rows(memory)
        if rows and memory.seen_at < 0:  # it begins to watch now: what was before is not its business
            memory = replace(memory, seen_at=float(rows[-1]["at"]), step=int(rows[-1]["step"]))
            rows = []
        memory, action = decide(self._config.controller, memory, self._seen(memory, rows, version))
        if action is not None:
            fields = fields_of(self._config, before, memory, action, time.time())
            if action.kind == "sync" and self._may_publish():
                fields["publish_above"] = str(version)
                memory = replace(memory, said=f"{memory.said}, and the learner publishes one at once")
            self._write(memory, asdict(wishes), fields, action, memory.said)
        elif memory != before:
            self._write(memory, {}, {}, None, "")

    def _new_rows(self, memory: Memory) -> Sequence[Mapping[str, Any]]:
        newest = self._control.history(last=1)
        if not newest or newest[-1]["at"] <= memory.seen_at:
            return []
        missed = newest[-1]["step"] - memory.step
        return [row for row in self._control.history(last=min(ROWS, max(1, missed))) if row["at"] > memory.seen_at]

    def _seen(self, memory: Memory, rows: Sequence[Mapping[str, Any]], version: int) -> Seen:
        members = self._control.members().values() if rows else ()
        servers = [values for values in members if values and values.get("kind") == "rollout"]
        floor = floor_of(rows[-1], servers) if rows else 1.0
        return Seen(rows, wanted_by_operator(self._config, memory), version, floor, time.time())

    def _write(
        self,
        memory: Memory,
        expected: Mapping[str, str],
        wanted: Mapping[str, str],
        action: Action | None,
        text: str,
    ) -> None:
        event = ("controller", text) if text else None
        done = self._steering.act(self._who, asdict(memory), expected, wanted, event)
        if text:
            kind = action.kind if action else "follow"
            (self._log.info if done else self._log.warning)("controller", kind=kind, because=text, done=done)

    def _may_publish(self) -> bool:
        """True where that is not done with every batch, and the version more makes nothing too stale that is out."""
        held, learner = backlog(self._client, self._keys), self._config.learner
        fits = held.unapplied + held.leased <= self._config.admission.max_staleness * learner.groups_per_publish
        return fits and learner.groups_per_publish > learner.groups_per_batch

    def _run(self) -> None:
        rounds = Rounds("a look of the controller")
        while not self._ended.wait(LOOK_S):
            with rounds:
                self.look()


def remembered(state: Mapping[str, Any]) -> Memory:
    """What was kept; nothing where it cannot be read."""
    try:
        return _MEMORY.validate_python(dict(state))
    except ValidationError:
        return Memory()
