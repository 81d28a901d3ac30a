"""Who gets a version over the wire, and the sending of it: every wait bounded, every failure said, none fatal.

    members   living servers that say they can (`transfer`, `ranks` in their heartbeat), serve already and do not lag
    group     one process group with all that are ready, kept from version to version while they stay the same
    failure   the group is given up and made anew at the next version; the version goes by files

A server that let a transfer down without a word is not asked again for LEFT_OUT_VERSIONS. One that was late for an
invitation is asked on, and no longer waited for until it answers in time.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field, replace

from learner.transfer.senders import Sender, Task, Tensors
from shared.config.transfer import TransferConfig
from shared.control import LEARNER, ControlState
from shared.errors import DeadlineError, StreamError, TransferError
from shared.log import Logger
from shared.process import Deadline
from shared.transfer import MAX_RANKS, MAX_WORKERS, Answer, Call, Said, Transfers

POLL_S = 0.01
LEFT_OUT_VERSIONS = 8
LATE_S = 0.2  # for those that were late the last time
ROLLOUT = "rollout:"  # before a server_id in the name of its component
_ORDER: dict[Said, int] = {"here": 0, "receiving": 1, "received": 2}


@dataclass(frozen=True)
class Servers:
    """The living rollout servers by their ways to get weights."""

    members: dict[str, int] = field(default_factory=dict)  # server_id -> workers
    others: tuple[str, ...] = ()  # who need files


class Channel:
    """The learner's end of the wire. It raises FencedError and StreamError; whatever else fails is an event."""

    def __init__(
        self,
        config: TransferConfig,
        control: ControlState,
        transfers: Transfers,
        sender: Sender,
        epoch: int,
        log: Logger,
    ) -> None:
        self._config = config
        self._control = control
        self._transfers = transfers
        self._sender = sender
        self._epoch = epoch
        self._log = log
        self._number = 0  # of the last call
        self._group = 0
        self._ranks: dict[str, int] = {}  # of the open group; empty: none is
        self._left_out: dict[str, int] = {}  # server_id -> version from which it is asked again
        self._late: set[str] = set()  # server_ids that were not ready the last time
        self._call = Call(epoch, 0, "go", 0)  # the last one that opened a group
        self._usable = True

    def servers(self, version: int) -> Servers:
        """Who lives now, and who of them would be asked to receive this version."""
        members, others = {}, []
        for name, status in self._control.members().items():
            if status is None or status.get("kind") != "rollout" or not name.startswith(ROLLOUT):
                continue
            server = name.removeprefix(ROLLOUT)
            workers = status.get("ranks", 0)
            able = status.get("transfer") == self._config.kind and 0 < workers <= MAX_WORKERS
            able &= not status.get("lag") and status.get("policy_version", -1) >= 0
            if able and self._usable and self._left_out.get(server, -1) <= version:
                members[server] = workers
            else:
                others.append(server)
        while sum(members.values()) >= MAX_RANKS:
            others.append(members.popitem()[0])
        return Servers(members, tuple(others))

    def send(self, version: int, tensors: Tensors) -> set[str]:
        """Sends a version to every member that is ready; returns the servers that received it."""
        members = self.servers(version).members
        if not members:
            return set()
        call = Call(self._epoch, self._number, "invite", version)
        here: set[str] = set()
        try:
            here = self._invite(version, members)
            if not here:
                return set()
            call = self._go(version, {name: members[name] for name in sorted(here)})
            self._transmit(call, tensors)
            self._transfers.withdraw(call)
        except (TransferError, DeadlineError) as error:
            return self._failed(call, here, str(error))
        except StreamError:
            self.close()  # nobody knows any more how far the servers are
            raise
        return here

    def close(self) -> None:
        """Leaves the process group."""
        self._ranks = {}
        self._sender.close()

    # -- the stages -----------------------------------------------------------------------------
    def _invite(self, version: int, members: dict[str, int]) -> set[str]:
        """Who of the members is ready now. Nobody stands still for this."""
        self._number += 1
        call = Call(self._epoch, self._number, "invite", version, invited=sorted(members))
        self._transfers.call(call, 2 * self._config.ready_s)
        self._until_all(call, members.keys() - self._late, ("here",), self._config.ready_s)
        answers = self._until_all(call, members, ("here",), LATE_S)
        if missing := members.keys() - answers.keys() - self._late:
            self._log.warning("not ready for a transfer", servers=sorted(missing), policy_version=version)
        self._late = members.keys() - answers.keys()
        return set(answers)

    def _go(self, version: int, members: dict[str, int]) -> Call:
        """Tells them their ranks; a new group wherever they are not those of the open one."""
        self._number += 1
        new = members.keys() != self._ranks.keys()
        if new:
            self.close()
            port = self._sender.listen(self._config.host, self._config.port)
            self._group += 1
            rank = 1
            for name, workers in members.items():
                self._ranks[name], rank = rank, rank + workers
            self._call = Call(
                self._epoch,
                self._number,
                "go",
                version,
                ranks=dict(self._ranks),
                group=self._group,
                world_size=rank,
                host=self._config.host,
                port=port,
            )
        call = self._call = replace(self._call, number=self._number, policy_version=version)
        self._transfers.call(call, self._config.deadline_s)
        if new:
            limit = self._config.deadline_s
            self._await(Task("open", lambda: self._sender.open(call.world_size, call.group, limit)), call)
        return call

    def _transmit(self, call: Call, tensors: Tensors) -> None:
        deadline = Deadline("every server to stand ready to receive", self._config.deadline_s)
        self._await_answers(call, "receiving", deadline)
        self._await(Task("send", lambda: self._sender.send(tensors)), call)
        deadline = Deadline("every server to have received", self._config.deadline_s)
        self._await_answers(call, "received", deadline)

    # -- waiting --------------------------------------------------------------------------------
    def _await(self, task: Task, call: Call) -> None:
        """Waits for the task, as long as no server has failed."""
        deadline = Deadline(f"the weights' process group to {task.what}", self._config.deadline_s)
        while not task.done(POLL_S):
            self._check(call)
            if not deadline.remaining:
                self._usable = self._sender.revocable
                deadline.check()
        if task.failure is not None:
            raise TransferError(f"cannot {task.what} the weights' process group: {task.failure}")

    def _await_answers(self, call: Call, said: Said, deadline: Deadline) -> None:
        while not self._have_said(call, said):
            deadline.check()
            time.sleep(POLL_S)

    def _until_all(
        self, call: Call, servers: Collection[str], said: tuple[Said, ...], seconds: float
    ) -> dict[str, Answer]:
        """What the servers have answered once all have said one of these, or the time is over."""
        deadline = Deadline("servers to answer", seconds)
        while True:
            answers = self._transfers.answers(call, servers)
            if not deadline.remaining or {n for n, a in answers.items() if a.said in said} == set(servers):
                return answers
            time.sleep(POLL_S)

    def _have_said(self, call: Call, said: Said) -> bool:
        answers = self._check(call)
        return all(name in answers and _ORDER[answers[name]] >= _ORDER[said] for name in call.ranks)

    def _check(self, call: Call) -> dict[str, Said]:
        """What the servers have said. Raises TransferError where one has failed."""
        answers = self._transfers.answers(call, call.ranks)
        for name, answer in answers.items():
            if answer.said == "failed":
                raise TransferError(f"{name}: {answer.why}")
        return {name: answer.said for name, answer in answers.items()}

    def _failed(self, call: Call, asked: Collection[str], reason: str) -> set[str]:
        """Gives the group up. Returns who has received everything all the same."""
        self.close()  # whoever waits in it learns of the failure by this
        final: tuple[Said, ...] = ("failed", "received")
        answers = self._until_all(call, asked, final, self._config.ready_s) if call.stage == "go" else {}
        self._transfers.withdraw(call)
        received = {name for name, answer in answers.items() if answer.said == "received"}
        silent = sorted(name for name in asked if name not in answers or answers[name].said in ("here", "receiving"))
        for name in silent:
            self._left_out[name] = call.policy_version + LEFT_OUT_VERSIONS
            self._late.add(name)
        told = [f"{name}: {answer.why}" for name, answer in sorted(answers.items()) if answer.said == "failed"]
        reason = "; ".join([reason, *(why for why in told if why != reason)])
        text = f"version {call.policy_version} goes by files: {reason}"
        if silent:
            text += f"; left out of the next {LEFT_OUT_VERSIONS} versions: {', '.join(silent)}"
        if not self._usable:
            text += "; files only, until the learner starts again"
        self._log.warning("a transfer failed", policy_version=call.policy_version, error=reason, silent=silent)
        self._control.add_event("transfer failed", text, LEARNER)
        return received
