"""A batch of groups cut into optimizer steps: `minibatches` of them, `passes` times over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from learner.batch import Float64Array, StepBatch, batch_rewards, build_step
from learner.intake import Held
from learner.objective.overlong import overlong_penalty
from shared.config.learner import LearnerConfig
from shared.types import Group


@dataclass
class Minibatch:
    """The groups of one optimizer step; they stay together in every pass."""

    held: list[Held]
    step_batch: StepBatch
    ended: bool = False  # a step of it was not finite: no further pass
    beyond: dict[str, Tensor] = field(default_factory=dict)  # what objectives need beyond the batch, same in every pass


def split(batch: Sequence[Held], config: LearnerConfig, seed: int, number: int) -> list[Minibatch]:
    """Cuts a batch of groups into minibatches, in the order of arrival.

    Args:
        batch: the groups.
        config: the learner's section.
        seed: of the run.
        number: of the batch within the run: with `shuffle_rewards` it decides the permutation, so a batch that
            is trained on again after a restart is shuffled as before.

    """
    rewards = batch_rewards([h.group for h in batch], (seed, number) if config.shuffle_rewards else None)
    if config.overlong_buffer:
        rewards = [r + overlong(h.group, config.overlong_buffer) for r, h in zip(rewards, batch, strict=True)]
    size = max(1, len(batch) // config.minibatches)
    minibatches = []
    for start in range(0, len(batch), size):
        held = list(batch[start : start + size])
        groups = [h.group for h in held]
        own = rewards[start : start + size]
        minibatches.append(Minibatch(held, build_step(groups, own, config.advantage, config.micro_batch_tokens)))
    return minibatches


def overlong(group: Group, buffer: int) -> Float64Array:
    """What the length of each completion adds to its reward, [B]; 0 for an expert's."""
    lengths = np.array([0.0 if t.by_expert else t.length for t in group.trajectories])
    most = max(t.sampling.max_tokens for t in group.trajectories)
    return overlong_penalty(torch.from_numpy(lengths), most, min(buffer, most)).numpy()


def next_steps(minibatches: Sequence[Minibatch], passes: int) -> list[tuple[Minibatch, int]]:
    """(minibatch, number of its pass from 0), in the order in which they are trained on."""
    return [(m, number) for number in range(passes) for m in minibatches]
