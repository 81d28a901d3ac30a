"""A run around one real learner: a tiny model, a real Redis, and a hand that appends groups like a rollout server."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from learner.batch import build_step
from learner.loop import Learner
from learner.model import PolicyModel
from learner.tiny_model import build_model, build_tokenizer
from learner.training import Training
from learner.warm_start import save
from shared.admission import Admission, Credit
from shared.codec import encode_group
from shared.config import Config
from shared.config.run import TinyModelConfig
from shared.control import ControlState, EvaluationResult
from shared.keys import Keys
from shared.log import configure
from shared.metrics import LearnerMetrics
from shared.process import StopFlag
from shared.redis_client import Client
from shared.store import PolicyStore
from shared.stream import Appended, Backlog, GroupWriter, backlog
from shared.types import Group, Trajectory, VersionSpan, group_id_for
from tests import builders

GROUP_SIZE = 4
TINY = TinyModelConfig(
    hidden_size=32,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=64,
)


def save_tiny_model(folder: Path) -> Path:
    """A random model that any test may start from: untrained, so that log-probs are near uniform."""
    tokenizer = build_tokenizer(["what is 1 + 2?", "3"], TINY.vocab_size)
    model = build_model(TINY, tokenizer)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)  # so that a step moves log-probs visibly
    save(model, tokenizer, folder)
    return folder


def with_true_logprobs(group: Group, policy: PolicyModel) -> Group:
    """The same group with the log-probs that the policy gives its tokens."""
    rewards = [np.array([t.reward for t in group.trajectories])]
    [micro_batch] = build_step([group], rewards, "group_std", 10**6).micro_batches
    with torch.no_grad():
        logprobs = policy.logprobs(micro_batch).float()
    trajectories: list[Trajectory] = []
    for i, t in enumerate(group.trajectories):
        values = np.zeros(t.length, dtype=np.float32)
        values[t.loss_mask] = logprobs[micro_batch.sequence_of == i].numpy()
        trajectories.append(replace(t, behavior_logprobs=values))
    return replace(group, trajectories=tuple(trajectories))


class World:
    """One run. `append` plays the rollout server, `learner` starts a learner (again)."""

    def __init__(self, config: Config, client: Client) -> None:
        self.config = config
        self.client = client
        self.keys = Keys(config.run.id)
        self.control = ControlState(client, self.keys)
        self.store = PolicyStore(config.run.folder / "policy")
        self.stop = StopFlag()
        self._learners: list[Learner] = []
        self._policies: dict[int, PolicyModel] = {}
        credit = Credit(versions=10**6, groups_per_version=10**6, max_bytes=2**40, group_bytes=1, lease_s=30.0)
        self.admission = Admission(client, self.keys, "s0", credit)
        self.writer = GroupWriter(client, self.keys, "s0")

    # -- the learner ----------------------------------------------------------------------------
    def learner(self) -> Learner:
        """A new learner, started; an older one of this test is left as a killed process would leave it."""
        self.abandon()
        learner = self.unstarted()
        learner.start()
        return learner

    def unstarted(self) -> Learner:
        log = configure(self.config.run.id, "learner", "error")
        self.stop = StopFlag()
        learner = Learner(self.config, self.client, log, self.stop, LearnerMetrics())
        self._learners.append(learner)
        return learner

    def abandon(self) -> None:
        """Ends the threads of every learner so far; nothing else of an orderly stop happens."""
        for learner in self._learners:
            learner.heartbeat.stop(leave=False)

    # -- the rollout server ---------------------------------------------------------------------
    def lease(self, count: int) -> list[int]:
        self.writer.confirm()
        return list(self.admission.lease(count, self.latest).indices)

    @property
    def latest(self) -> int:
        known = self.control.latest()
        assert known is not None
        return known.policy_version

    def group(self, index: int, version: int | None = None, **changes: Any) -> Group:
        """A group as the rollout server of `version` (the latest) draws it."""
        version = self.latest if version is None else version
        drawn = builders.group(index, self.config.run.id, GROUP_SIZE, version, **changes)
        if version not in self._policies:
            _, folder = self.store.hold(version, "s0")
            self._policies[version] = PolicyModel.load(str(folder), "float32", torch.device("cpu"))
        return with_true_logprobs(drawn, self._policies[version])

    def append(self, count: int, version: int | None = None) -> list[int]:
        """Leases prompts and appends their groups; returns their indices."""
        indices = self.lease(count)
        for index in indices:
            assert self.put(self.group(index, version)) is Appended.STORED
        return indices

    def put(self, group: Group) -> Appended:
        return self.put_bytes(group.prompt_index, encode_group(group))

    def put_bytes(self, index: int, payload: bytes) -> Appended:
        return self.writer.append(index, group_id_for(self.config.run.id, index), payload)

    def put_changed(self, change: Callable[[Trajectory], Trajectory]) -> int:
        """Appends a group whose first trajectory is changed; returns its index."""
        [index] = self.lease(1)
        good = self.group(index)
        first, *others = good.trajectories
        assert self.put(replace(good, trajectories=(change(first), *others))) is Appended.STORED
        return index

    def answer_evaluations(self, accuracy: float) -> None:
        """Plays the rollout server that evaluates."""
        for version in self.control.pending_evaluations():
            result = EvaluationResult(version, accuracy, 8, 3.0, 0.1, "s0", 1.0)
            self.control.finish_evaluation(version, result)

    # -- what became of it ----------------------------------------------------------------------
    def lines(self, name: str) -> list[dict[str, Any]]:
        path = self.config.run.folder / name
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def applied(self) -> Counter[int]:
        """How often each index was applied in the surviving lineage."""
        return Counter(index for row in self.lines("history.jsonl") for index in row["prompt_indices"])

    @property
    def drops(self) -> dict[int, str]:
        return {row["prompt_index"]: row["reason"] for row in self.lines("dropped.jsonl")}

    @property
    def backlog(self) -> Backlog:
        return backlog(self.client, self.keys)


def weights(training: Training) -> torch.Tensor:
    """All weights in one tensor."""
    return torch.cat([p.detach().flatten() for p in training.parts.policy.named_parameters().values()])


def drawn_by(version: int) -> Callable[[Trajectory], Trajectory]:
    return lambda t: replace(t, versions=(VersionSpan(version, 0, t.length),))
