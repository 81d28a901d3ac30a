"""One run under attack: a Redis of its own, the real learner with the counting model, and the load generator."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.children import Child
from services.redis_server import RedisServer, start_redis, with_url
from shared.config import Config, load_config
from shared.config.load import dump_config
from shared.control import ControlState
from shared.errors import StreamError
from shared.keys import Keys
from shared.redis_client import Client, connect
from shared.stream import Backlog, backlog
from tests.chaos.counting import KILL, STEPS, counters_of
from tests.chaos.processes import kill, rss_mib, send, start_python, wait_for
from tests.chaos.result import ScenarioResult

START_S = 30.0  # from a learner's start to its first words, on a busy machine
SLACK = 50_000  # counters beyond the groups that are wanted: the generator runs ahead


@dataclass
class Judged:
    """What the generator's log, the weights and Redis say together."""

    sent: int
    acknowledged: set[int]
    acknowledged_twice: set[int]  # as stored: Redis has forgotten the first in between
    applied: Counter[int]
    in_stream: set[int]
    dead: Counter[str]
    dead_but_good: list[int]
    dropped: Counter[str]  # by the reason that the run's own record gives
    lost: list[int]
    twice: list[int]
    redelivered: int


@dataclass
class Stack:
    """`with Stack(folder, steps=...) as stack:` ends every process at the end."""

    folder: Path
    steps: int
    groups_per_batch: int = 32
    settings: tuple[str, ...] = ()
    extra_counters: int = SLACK
    learner: Child | None = None
    faults: list[float] = field(default_factory=list)  # unix seconds
    children: list[Child] = field(default_factory=list)
    memory: dict[str, float] = field(default_factory=dict)  # peaks, MiB

    def __post_init__(self) -> None:
        model = self.folder / "model"
        model.mkdir(parents=True)
        (model / "counters.json").write_text(json.dumps(self.steps * self.groups_per_batch + self.extra_counters))
        self.steps_file, self.appends_file = self.folder / "steps.txt", self.folder / "appends.jsonl"
        self.config: Config = load_config(
            None,
            [
                "run.id=chaos",
                f"run.folder={self.folder / 'run'}",
                "control_plane.auth=none",
                f"model.path={model}",
                "rollout={engine: {kind: transformers, device: cpu}, group_size: 2, sampling: {max_tokens: 8}}",
                "rollout.groups_in_flight=32",
                "learner={device: cpu, objective: {name: reinforce}, advantage: group_mean, learning_rate: 1}",
                "learner.max_grad_norm=1.0e+30",
                "learner.micro_batch_tokens=1000000",
                f"learner.groups_per_batch={self.groups_per_batch}",
                f"learner.steps={self.steps}",
                "learner.checkpoint_every=10",
                "learner.idle_deadline_s=120",
                "evaluation={deadline_s: 0.05, every: 1000000}",
                "admission={max_staleness: 8, lease_s: 5}",
                *self.settings,
            ],
            {},
        )
        self.keys = Keys(self.config.run.id)
        self.redis: RedisServer | None = None
        self._port = 0

    # -- processes ------------------------------------------------------------------------------
    def __enter__(self) -> Stack:
        self.start_redis()
        return self

    def __exit__(self, *_: object) -> None:
        for child in self.children:
            self.note_memory(child)
            kill(child)
        if self.redis is not None:
            kill(self.redis.child)

    def start_redis(self) -> None:
        """Starts it, or starts it again on the same port with the data that it has."""
        self.redis = start_redis(self._plain, prefer_port=self._port)
        self._port = int(self.redis.url.rpartition(":")[2])
        self.config = with_url(self.config, self.redis.url)
        self.client: Client = connect(self.config)
        self.control = ControlState(self.client, self.keys)
        self.write_config(self.config)

    @property
    def _plain(self) -> Config:
        return self.config.model_copy(update={"redis": self.config.redis.model_copy(update={"url": None})})

    def write_config(self, config: Config, name: str = "config.yaml") -> Path:
        """Writes a configuration for the processes to read."""
        path = self.folder / name
        path.write_text(dump_config(config))
        return path

    def kill_redis(self) -> None:
        """SIGKILL."""
        assert self.redis is not None
        self.note_redis_memory()
        self.fault()
        kill(self.redis.child)

    def start_learner(self, kill_at: str = "", module: str = "tests.chaos.counting") -> Child:
        """The real learner process, with the counting model unless another module is named."""
        environ = {STEPS: str(self.steps_file), KILL: kill_at}
        self.learner = self._start("learner", [module, "--config", str(self.folder / "config.yaml")], environ)
        return self.learner

    def start_load(self, *arguments: str, config: Path | None = None) -> Child:
        """The load generator."""
        file = str(config or self.folder / "config.yaml")
        words = ["services.load", "--config", file, "--log", str(self.appends_file), *arguments]
        return self._start("load", words)

    def start_other(self, name: str, *words: str) -> Child:
        """Any other module as a process of this run."""
        return self._start(name, list(words))

    def _start(self, name: str, words: list[str], environ: Mapping[str, str] | None = None) -> Child:
        child = start_python(name, self.folder / f"{name}.log", words, environ)
        self.children.append(child)
        return child

    def fault(self) -> float:
        """Notes that a fault is injected now."""
        self.faults.append(time.time())
        return self.faults[-1]

    def kill(self, child: Child) -> None:
        """SIGKILL, noted as a fault."""
        self.note_memory(child)
        self.fault()
        kill(child)

    def signal(self, child: Child, signum: Any) -> None:
        """Sends a signal to a child and notes it as a fault."""
        self.note_memory(child)
        self.fault()
        send(child, signum)

    # -- what is to be seen ---------------------------------------------------------------------
    def applications(self) -> list[tuple[float, int]]:
        """(time, groups) of every optimizer step of every life."""
        if not self.steps_file.exists():
            return []
        lines = self.steps_file.read_text().splitlines()
        pairs = (line.split() for line in lines if len(line.split()) == 2)
        return [(float(at), int(groups)) for at, groups in pairs]

    def appends(self) -> list[dict[str, Any]]:
        """What Redis answered to every append."""
        if not self.appends_file.exists():
            return []
        text = self.appends_file.read_text()
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def backlog(self) -> Backlog | None:
        """None while Redis is away."""
        try:
            return backlog(self.client, self.keys)
        except StreamError:
            return None

    def phase(self) -> tuple[str, str]:
        """(phase, reason); ('', '') while Redis is away."""
        try:
            return self.control.phase()
        except StreamError:
            return "", ""

    def step_of_learner(self) -> int:
        """How many optimizer steps there were in all lives together."""
        return len(self.applications())

    def reach(self, steps: int, seconds: float) -> None:
        """Waits until so many optimizer steps were taken, in all lives together."""
        wait_for(f"optimizer step {steps}", seconds, lambda: self.step_of_learner() >= steps, every=0.05)

    def until_phase(self, phase: str, seconds: float) -> str:
        """Waits for a phase; its reason."""
        wait_for(f"the phase {phase}", seconds, lambda: self.phase()[0] == phase, every=0.05)
        return self.phase()[1]

    def states(self, kind: str = "rollout") -> list[str]:
        """What living components of a kind say that they do."""
        try:
            members = self.control.members().values()
        except StreamError:
            return []
        return [str(m["state"]) for m in members if m and m.get("kind") == kind]

    def log_of(self, name: str) -> str:
        """What a process has written."""
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def note_memory(self, child: Child) -> None:
        """Keeps the peak memory of a child that lives."""
        if child.exit_code() is None:
            self.memory[child.name] = max(self.memory.get(child.name, 0.0), rss_mib(child.pid, peak=True))

    def note_redis_memory(self) -> None:
        """Keeps the peak memory of Redis."""
        try:
            peak = int(self.client.info("memory")["used_memory_peak"]) / 2**20
        except Exception:  # noqa: BLE001 - it is away
            return
        self.memory["redis"] = max(self.memory.get("redis", 0.0), peak)

    # -- the judgement --------------------------------------------------------------------------
    @property
    def checkpoints(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        found = (self.folder / "run" / "checkpoints").glob("e*")
        return sorted(p for p in found if not p.name.endswith(".torn") and (p / "manifest.json").exists())

    def judge(self) -> Judged:
        """Compares what Redis acknowledged with what is in the weights, the stream and the dead letters."""
        rows = self.appends()
        stored = Counter(row["index"] for row in rows if row["result"] == "stored")
        acknowledged = {row["index"] for row in rows if row["result"] in ("stored", "duplicate")}
        poisoned = {row["index"] for row in rows if row["poison"]}
        counters = counters_of(self.checkpoints[-1] / "model.safetensors").tolist()
        applied = Counter({index: round(count) for index, count in enumerate(counters) if count})
        inexact = [index for index, count in enumerate(counters) if count != math.floor(count)]
        assert not inexact, f"counters that are no whole numbers: {inexact[:5]}"
        in_stream = {int(fields[b"prompt_index"]) for _, fields in self._entries(self.keys.groups)}
        letters = [fields for _, fields in self._entries(self.keys.dead_letters)]
        dead = {int(fields[b"prompt_index"]) for fields in letters}
        reasons = Counter(fields[b"reason"].decode() for fields in letters)
        dropped = {row["prompt_index"]: row["reason"] for row in self.rows("dropped.jsonl")}
        done = sum(groups for _, groups in self.applications())
        return Judged(
            sent=len(rows),
            acknowledged=acknowledged,
            acknowledged_twice={index for index, n in stored.items() if n > 1},
            applied=applied,
            in_stream=in_stream,
            dead=reasons,
            dropped=Counter(reason for index, reason in dropped.items() if index not in dead),
            lost=sorted(acknowledged - set(applied) - in_stream - dead - set(dropped)),
            dead_but_good=sorted(dead - poisoned),
            twice=sorted(index for index, n in applied.items() if n > 1 or index in poisoned),
            redelivered=done - sum(applied.values()),
        )

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The lines of one of the run's own files."""
        path = self.folder / "run" / name
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def _entries(self, key: str) -> list[tuple[bytes, dict[bytes, bytes]]]:
        found: list[tuple[bytes, dict[bytes, bytes]]] = self.client.xrange(key)
        return found

    def fill_in(self, result: ScenarioResult, most_stale: int = 0, forgetful: bool = False) -> Judged:
        """Judges, and writes the figures and the checks of every scenario into the result.

        Args:
            result: of the scenario.
            most_stale: groups that may have been dropped as too stale, each on record.
            forgetful: Redis was made to forget what it had acknowledged. Else a group that it acknowledged twice
                was lost the first time, and its prompt drawn again.

        """
        judged = self.judge()
        self.note_redis_memory()
        for child in self.children:
            self.note_memory(child)
        result.faults = result.faults or len(self.faults)
        result.groups_sent, result.acknowledged = judged.sent, len(judged.acknowledged)
        result.applied, result.redelivered = sum(judged.applied.values()), judged.redelivered
        lost = sorted({*judged.lost, *(() if forgetful else judged.acknowledged_twice)})
        result.lost, result.applied_twice = lost, judged.twice
        result.dead_lettered = sum(judged.dead.values())
        result.peak_memory_mib = dict(self.memory)
        result.longest_recovery_s = max(self.recoveries(), default=None)
        result.check("no acknowledged group is lost", not lost, lost[:10] or "0")
        result.dropped = sum(judged.dropped.values())
        stale = judged.dropped["too_stale"]
        what = f"no good group is dropped (too stale: at most {most_stale})"
        result.check(what, stale == result.dropped and stale <= most_stale, dict(judged.dropped) or "0")
        result.check("no good group is a dead letter", not judged.dead_but_good, dict(judged.dead))
        result.check("no group is applied twice", not judged.twice, judged.twice[:10] or "0")
        wanted = self.steps * self.groups_per_batch
        result.check("every step applied all of its groups", result.applied == wanted, f"{result.applied} of {wanted}")
        return judged

    def recoveries(self) -> list[float]:
        """Seconds from each fault to the next optimizer step after it."""
        times = [at for at, _ in self.applications()]
        return [min(at - fault for at in times if at > fault) for fault in self.faults if times and times[-1] > fault]
