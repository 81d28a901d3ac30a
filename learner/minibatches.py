"""A batch of groups cut into optimizer steps: `minibatches` of them, `passes` times over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from learner.batch import StepBatch, batch_rewards, build_step
from learner.intake import Held
from shared.config.models import LearnerConfig


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
    size = max(1, len(batch) // config.minibatches)
    minibatches = []
    for start in range(0, len(batch), size):
        held = list(batch[start : start + size])
        groups = [h.group for h in held]
        own = rewards[start : start + size]
        minibatches.append(Minibatch(held, build_step(groups, own, config.advantage, config.micro_batch_tokens)))
    return minibatches


def next_steps(minibatches: Sequence[Minibatch], passes: int) -> list[tuple[Minibatch, int]]:
    """(minibatch, number of its pass from 0), in the order in which they are trained on."""
    return [(m, number) for number in range(passes) for m in minibatches]
