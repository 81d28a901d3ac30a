"""Steps to try objectives on, and what it means that an objective agrees with a loss written from its paper."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from learner.objective.core import Step, TokenLoss, piece_loss

SEEDS = range(5)


def random_step(
    seed: int, lengths: Sequence[int] = (3, 1, 4, 7, 2, 5), spread: float = 1.0, group: int = 2, **fields: Any
) -> Step:
    """Completions of these lengths in groups of `group`, one advantage each; float64, log-normal ratios."""
    generator = torch.Generator().manual_seed(seed)
    of = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))

    def normal(n: int) -> Tensor:
        return torch.randn(n, generator=generator, dtype=torch.float64)

    behavior = -3 * torch.rand(len(of), generator=generator, dtype=torch.float64)
    rewards = normal(len(lengths))
    made: dict[str, Any] = {
        "policy_logprobs": behavior + spread * normal(len(of)),
        "behavior_logprobs": behavior,
        "advantages": rewards[of],
        "sequence_of": of,
        "group_of": torch.arange(len(lengths)) // group,
        "rewards": rewards,
        "proximal_logprobs": behavior + spread * normal(len(of)),
        "preceding_logprobs": behavior + spread * normal(len(of)),
        "ref_logprobs": behavior + spread * normal(len(of)),
    }
    return Step(**(made | fields))


def on_policy(step: Step) -> Step:
    """The same step as if the policy itself had just drawn it."""
    now = step.policy_logprobs
    others = ("behavior_logprobs", "proximal_logprobs", "preceding_logprobs", "ref_logprobs")
    return dataclasses.replace(step, **dict.fromkeys(others, now))


def one_token_each(step: Step) -> Step:
    """The same tokens, every one a completion and a group of its own."""
    every = torch.arange(step.tokens)
    return dataclasses.replace(step, sequence_of=every, group_of=every, rewards=step.advantages)


def completions(step: Step) -> list[Tensor]:
    """The tokens of each completion that has some: a list of [|o_i|], int64."""
    tokens = [(step.sequence_of == i).nonzero().flatten() for i in range(step.sequences)]
    return [t for t in tokens if len(t)]


def mean_of_means(values: Tensor, step: Step) -> Tensor:
    """Over completions, of the mean over each one's tokens."""
    return torch.stack([values[tokens].mean() for tokens in completions(step)]).mean()


def assert_matches(step: Step, token_loss: TokenLoss, loss_of: Callable[[Tensor], Tensor]) -> None:
    """Value and gradient are those of a loss written with autograd on the policy's log-probs, to 1e-10."""
    policy = step.policy_logprobs.clone().requires_grad_()
    expected = loss_of(policy)
    (gradient,) = torch.autograd.grad(expected, policy)
    loss = piece_loss(token_loss, slice(None), policy)
    torch.testing.assert_close(token_loss.loss, expected.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(loss, policy)[0], gradient, rtol=1e-10, atol=1e-12)


def assert_same(one: TokenLoss, other: TokenLoss) -> None:
    """Two objectives that are one on this step: every token's value, slope and weight."""
    for name in ("value", "slope", "weight"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-10, atol=1e-12)
    assert one.cut.tolist() == other.cut.tolist()
