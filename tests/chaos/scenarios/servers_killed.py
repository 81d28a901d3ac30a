"""7. One of several real rollout servers is killed again and again."""

from __future__ import annotations

import math
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from learner.batch import build_step
from learner.model import PolicyModel
from services.children import Child
from shared.codec import decode_group
from shared.types import Group
from tests.chaos.processes import ended, wait_for
from tests.chaos.result import ScenarioResult
from tests.chaos.stack import Stack
from tests.rollout.models import save_model

GROUP_SIZE = 4
TOLERANCE_NATS = 1e-3
TRANSFORMERS = "{kind: transformers, device: cpu}"
VLLM = "{kind: vllm, device: cpu, max_model_len: 64, max_num_seqs: 32, kv_cache_gib: 0.1}"


@dataclass
class Observer:
    """Looks at every entry of the stream while it is there, as another consumer would."""

    stack: Stack
    groups: dict[int, Group] = field(default_factory=dict)
    _last: str = "-"

    def look(self) -> int:
        """Takes in what is new; how many groups were seen so far."""
        for entry_id, fields in self.stack.client.xrange(self.stack.keys.groups, min=self._last):
            group = decode_group(fields[b"payload"])
            self.groups[group.prompt_index] = group
            self._last = f"({entry_id.decode()}"
        return len(self.groups)


def run(short: bool, workdir: Path) -> ScenarioResult:
    """The transformers engine, and in the full form vLLM too."""
    result = ScenarioResult(7, "rollout server killed again and again", short)
    _engine(
        result,
        workdir / "transformers",
        TRANSFORMERS,
        servers=2 if short else 4,
        kills=2 if short else 12,
        every_s=4 if short else 15,
    )
    if not short:
        _engine(result, workdir / "vllm", VLLM, servers=4, kills=3, every_s=90)
    return result


def _engine(result: ScenarioResult, folder: Path, engine: str, servers: int, kills: int, every_s: float) -> None:
    settings = (
        f"model.path={save_model(folder.with_name(folder.name + '-model'))}",
        f"rollout={{engine: {engine}, group_size: {GROUP_SIZE}, sampling: {{max_tokens: 6}}, groups_in_flight: 4}}",
        "environment={kind: python, path: 'tests.rollout.worlds:Parity'}",
        "learner={device: cpu, learning_rate: 0.001, groups_per_batch: 4, steps: 100000, retain_versions: 100000}",
        "learner.checkpoint_every=10",
        "learner.idle_deadline_s=300",
        "evaluation={prompts: 4, every: 100000}",
        "admission={max_staleness: 4, lease_s: 4}",
    )
    rng = random.Random(7)
    with Stack(folder, 0, settings=settings) as stack:
        observer, name = Observer(stack), "vllm" if "vllm" in engine else "transformers"
        stack.start_learner(module="learner")
        living = {f"r{i}": _server(stack, f"r{i}") for i in range(servers)}
        back_s: list[float] = []
        wait_for(f"groups of every {name} server", 240, lambda: len(_who(observer)) == servers, every=0.1)
        for _ in range(kills):
            victim = rng.choice(sorted(living))
            wait_for("the victim to hold leases", 120, lambda: observer.look() and _held(stack, victim), every=0.01)  # noqa: B023
            held = _held(stack, victim)
            stack.kill(living[victim])
            killed = time.monotonic()
            living[victim] = _server(stack, victim)
            what = f"the {len(held)} leases of {victim} to be drawn by somebody"
            wait_for(what, 60, lambda: observer.look() and held <= set(observer.groups), every=0.1)  # noqa: B023
            back_s.append(time.monotonic() - killed)
            _keep_looking(observer, killed + every_s - time.monotonic())
        wait_for("the last victim to draw again", 240, lambda: victim in _who(observer, stack.faults[-1]), every=0.1)
        assert stack.learner is not None
        stack.signal(stack.learner, signal.SIGTERM)
        ended(stack.learner, 20)
        observer.look()
        _judge(result, stack, observer, name)
        result.check(f"{name}: leases of the killed return", len(back_s) == kills, f"{max(back_s):.1f} s")
        result.faults += kills
        result.longest_recovery_s = max(result.longest_recovery_s or 0.0, *back_s)
        result.details[name] = f"{servers} servers, one killed every {every_s:g} s"


def _judge(result: ScenarioResult, stack: Stack, observer: Observer, name: str) -> None:
    """From the stream's own entries and the published files; the learner's history says only what it trained on."""
    trained = Counter(index for row in stack.rows("history.jsonl") for index in row["prompt_indices"])
    unseen = sorted(set(trained) - set(observer.groups))
    sizes = Counter(group.group_size for group in observer.groups.values())
    result.groups_sent = (result.groups_sent or 0) + len(observer.groups)
    result.applied = (result.applied or 0) + sum(trained.values())
    twice = [index for index, n in trained.items() if n > 1]
    result.applied_twice = [*(result.applied_twice or []), *twice]
    result.check(f"{name}: every trained group was seen in the stream", not unseen and bool(trained), len(trained))
    result.check(f"{name}: no incomplete group", set(sizes) == {GROUP_SIZE}, dict(sizes))
    result.check(f"{name}: no group is applied twice", not twice, twice[:10] or "0")
    worst = max(_off(stack, group) for index, group in observer.groups.items() if index in trained)
    what = f"{name}: every trained group was drawn by the published weights that it names"
    result.check(what, worst <= TOLERANCE_NATS, f"log-probs differ by at most {worst:.1e} nats")


_policies: dict[Path, PolicyModel] = {}


def _off(stack: Stack, group: Group) -> float:
    """Largest difference between a group's log-probs and those of the versions that its tokens name, nats."""
    rewards = [np.zeros(group.group_size)]
    step = build_step([group], rewards, "group_mean", 10**6)
    [batch] = step.micro_batches
    worst = 0.0
    for version in np.unique(step.versions):
        with torch.no_grad():
            found = _policy(stack, int(version)).logprobs(batch) - batch.behavior_logprobs
        difference = found[torch.from_numpy(step.versions == version)].abs().max().item()
        worst = max(worst, difference if math.isfinite(difference) else math.inf)
    return worst


def _policy(stack: Stack, version: int) -> PolicyModel:
    folder = stack.folder / "run" / "policy" / f"v{version:08d}"
    if folder not in _policies:
        _policies[folder] = PolicyModel.load(str(folder), "float32", torch.device("cpu"))
    return _policies[folder]


def _server(stack: Stack, server_id: str) -> Child:
    file = str(stack.folder / "config.yaml")
    return stack.start_other(f"rollout-{server_id}", "rollout", "--config", file, "--server-id", server_id)


def _held(stack: Stack, server_id: str) -> set[int]:
    owners = stack.client.hgetall(stack.keys.owners)
    return {int(index) for index, owner in owners.items() if owner.decode() == server_id}


def _who(observer: Observer, since: float = 0.0) -> set[str]:
    """Servers of the groups that were completed since then (unix seconds)."""
    observer.look()
    return {group.server_id for group in observer.groups.values() if group.started_at > since}


def _keep_looking(observer: Observer, seconds: float) -> None:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        observer.look()
        time.sleep(0.1)
