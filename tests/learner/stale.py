"""Stale groups for a tiny policy, every field that any objective may need, and the gradient of a step on them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from learner.batch import StepBatch, batch_rewards, build_step
from learner.model import PolicyModel
from learner.objective.registry import OBJECTIVES, Objective, build
from learner.objectives import Objectives
from learner.provision import logprobs_now
from learner.ranks import ALONE, Ranks
from learner.step import StepOutcome, make_optimizer, take_step
from shared.config.learner import LearnerConfig
from shared.types import Float32Array, Group
from tests import builders
from tests.learner.one_by_one import make_wide

LONGEST = 8  # tokens of a completion
STILL = LearnerConfig(learning_rate=0.0, max_grad_norm=1e9)
"""A step's gradient stays in the parameters, and the parameters stay."""
ALL_IN_ONE, IN_THREE, EACH_ALONE = 10_000, 44, 1  # micro_batch_tokens of four groups
CASES: dict[str, Objective] = {
    **{name: build(name) for name in OBJECTIVES},
    "p3o, k3": build("p3o", {"kl_estimator": "k3"}),
    "p3o, ESS of completions": build("p3o", {"ess_scope": "completion"}),
    "p3o, regularized": build("p3o", {"entropy_weight": 0.1, "ref_kl_weight": 0.5}),
    "grpo, regularized": build("grpo", {"entropy_weight": 0.1, "ref_kl_weight": 0.5, "ref_kl_estimator": "k3"}),
}
"""Every objective with its defaults, and what reaches further."""


def load(folder: Path, dtype: torch.dtype = torch.float32) -> PolicyModel:
    """The tiny policy in this precision."""
    policy = PolicyModel.load(str(folder), "float32", torch.device("cpu"))
    if dtype == torch.float64:
        make_wide(policy)
    return policy


def cut_into(groups: Sequence[Group], micro_batch_tokens: int) -> StepBatch:
    """One step's batch."""
    rewards = batch_rewards(groups) if groups else []
    return build_step(groups, rewards, "group_std", micro_batch_tokens)


def stale_groups(policy: PolicyModel, count: int = 4, spread: float = 0.5) -> list[Group]:
    """Groups of uneven completions whose behavior log-probs are the policy's, with noise: an ESS well below 1."""
    groups = [
        builders.group(
            i,
            trajectories=tuple(
                builders.trajectory(2 + (3 * k + i) % (LONGEST - 1), reward=float((k + i) % 3), seed=10 * i + k)
                for k in range(4)
            ),
        )
        for i in range(count)
    ]
    batch = cut_into(groups, ALL_IN_ONE)
    [m] = batch.micro_batches
    now = logprobs_now(policy, batch).float()
    known = [now[m.sequence_of == i].numpy() for i in range(len(batch.rewards))]
    first = 0
    for i, group in enumerate(groups):
        drawn = [
            replace(t, behavior_logprobs=known[first + k] + _noise((i, k), "behavior", spread)[: t.length])
            for k, t in enumerate(group.trajectories)
        ]
        groups[i] = replace(group, trajectories=tuple(drawn))
        first += len(drawn)
    return groups


def beyond(batch: StepBatch, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """All that a step may have beyond its batch; a token's values do not depend on how the step is cut."""
    tokens = [
        (batch.groups[group].prompt_index, int(sequence - first), int(before) + 1 - len(batch.groups[group].prompt_ids))
        for m in batch.micro_batches
        for sequence, before in zip(m.sequence_of, m.packed.positions[m.before], strict=True)
        for group in [int(batch.group_of[sequence])]
        for first in [int((batch.group_of < group).sum())]
    ]
    behavior = torch.cat([torch.empty(0), *(m.behavior_logprobs for m in batch.micro_batches)]).to(dtype)
    others = {
        f"{name}_logprobs": behavior + torch.tensor([_of_token(token, name) for token in tokens], dtype=dtype)
        for name in ("proximal", "preceding", "ref")
    }
    return others | {
        "expert": torch.tensor([k == 3 for _, k, _ in tokens], dtype=torch.bool),
        "replayed": torch.tensor([i % 2 == 0 for i, _, _ in tokens], dtype=torch.bool),
    }


def take(
    policy: PolicyModel,
    batch: StepBatch,
    objectives: Objectives,
    *,
    config: LearnerConfig = STILL,
    given: Mapping[str, Tensor] | None = None,
    ranks: Ranks = ALONE,
) -> StepOutcome:
    """The first optimizer step, given what its objectives need if nothing else is."""
    dtype = next(iter(policy.named_parameters().values())).dtype
    if given is None:
        given = {name: values for name, values in beyond(batch, dtype).items() if name in objectives.needs}
    optimizer = make_optimizer(policy, config)
    return take_step(policy, optimizer, batch, objectives, config, 1, beyond=given, ranks=ranks)


def gradient_of(policy: PolicyModel) -> Tensor:
    """The gradient that the parameters hold, flat."""
    return torch.cat([p.grad.flatten() for p in policy.named_parameters().values() if p.grad is not None])


def weights_of(policy: PolicyModel) -> Tensor:
    """A copy of the weights, flat."""
    return torch.cat([p.detach().flatten() for p in policy.named_parameters().values()])


def _of_token(token: tuple[int, int, int], name: str) -> float:
    i, k, position = token
    return float(_noise((i, k), name, 0.4)[position])


@functools.cache
def _noise(trajectory: tuple[int, int], name: str, spread: float) -> Float32Array:
    """Of the first tokens of a trajectory."""
    normal = np.random.default_rng([*trajectory, *name.encode()]).standard_normal(LONGEST)
    return (spread * normal).astype(np.float32)
