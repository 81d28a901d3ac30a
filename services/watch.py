"""The supervisor's eyes: each look asks Redis where the run stands and puts it beside the processes."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence

from services import launch
from services.children import Child
from services.eyes import Eyes, RedisSource
from services.run_folder import CONFIG
from services.status import Member, RunStatus
from services.terminal import ProcessLine, View
from shared.config import Config
from shared.errors import StreamError


class Watch:
    """Looks at a run and its processes, again and again."""

    def __init__(self, config: Config, children: Sequence[Child], began: float) -> None:
        self._config = config
        self._children = children
        self._began = began
        self._redis = RedisSource(config)
        self._eyes = Eyes(self._redis)
        self.proof_max_nats: float | None = None  # largest that any rollout server has ever reported

    def close(self) -> None:
        """Gives the connection back."""
        self._redis.close()

    def look(self) -> View:
        """The run as it is now; the last known state where Redis does not answer."""
        self._eyes.look()
        status = self._eyes.status
        if status is not None:
            proofs = [member.values.get("proof_max_nats") for member in status.of_kind("rollout")]
            self.proof_max_nats = max((p for p in [*proofs, self.proof_max_nats] if p is not None), default=None)
        return View(
            run_id=self._config.run.id,
            verdict=self._eyes.verdict,
            processes=self._processes(status),
            progress=self._eyes.progress(),
            dashboard=self._dashboard(status),
            metrics=self._metrics(status),
            elapsed_s=time.monotonic() - self._began,
            advice=self._advice(status),
        )

    def phase(self) -> tuple[str, str]:
        """(phase, reason) by the learner's word; the last known one where Redis does not answer."""
        try:
            return self._redis.control.phase()
        except StreamError as error:
            return ("unknown", str(error))

    def living_rollouts(self) -> int:
        """Rollout servers that send heartbeats, wherever they run."""
        try:
            members = self._redis.control.members()
        except StreamError:
            return 0
        return sum(1 for name, status in members.items() if name.startswith("rollout:") and status is not None)

    def _advice(self, status: RunStatus | None) -> str:
        """How to start a rollout server, where none was asked for and none has come."""
        here = status is not None and any(member.alive for member in status.of_kind("rollout"))
        if self._config.rollout.servers or here:
            return ""
        file = shlex.quote(str(self._config.run.folder / CONFIG))
        return f"There is no rollout server; start one: trustbatch rollout --config {file} --server-id r0"

    def _processes(self, status: RunStatus | None) -> list[ProcessLine]:
        ours = [self._line(child, self._member(child, status)) for child in self._children]
        names = {row.name for row in ours}
        guests = [m for m in status.of_kind("rollout") if m.component not in names] if status else []
        return [*ours, *(member_line(member.component, member) for member in guests)]

    def _line(self, child: Child, member: Member | None) -> ProcessLine:
        if member is None:
            return ProcessLine(child.name, "starting", time.time() - child.started_at)
        return member_line(child.name, member)

    def _member(self, child: Child, status: RunStatus | None) -> Member | None:
        """The heartbeat of this very process; one that an earlier process left behind does not count."""
        members = status.members if status else ()
        return next((member for member in members if member.values.get("pid") == child.pid), None)

    def _dashboard(self, status: RunStatus | None) -> str:
        ours = [child for child in self._children if child.name == launch.CONTROL_PLANE]
        member = self._member(ours[0], status) if ours else None
        return str(member.values.get("address") or "") if member else ""

    def _metrics(self, status: RunStatus | None) -> list[str]:
        members = status.members if status else ()
        return [str(member.values["metrics"]) for member in members if member.values.get("metrics")]


def member_line(name: str, member: Member) -> ProcessLine:
    """What a process says of itself."""
    seconds = None if member.since is None else max(0.0, time.time() - member.since)
    version = member.values.get("policy_version")
    notes = [f"version {version}"] if version is not None and version >= 0 else []
    if member.values.get("groups"):
        notes.append(f"{member.values['groups']:,} groups")
    state = member.state or ("serving" if member.alive else "no heartbeat")
    return ProcessLine(name, state, seconds, " · ".join(notes))
