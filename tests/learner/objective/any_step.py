"""Steps of every shape that a run can meet, with every optional field, for what holds of all objectives."""

from __future__ import annotations

import dataclasses
import math

import torch
from hypothesis import strategies as st
from torch import Tensor

from learner.objective.advantages import group_advantages
from learner.objective.core import Step
from learner.objective.registry import OBJECTIVES, knobs_of

EXTREME = math.log(1e30)
OF_COMPLETIONS = ("group_of", "rewards")
OF_TOKENS = tuple(field.name for field in dataclasses.fields(Step) if field.name not in OF_COMPLETIONS)


@st.composite
def any_steps(draw: st.DrawFn) -> Step:
    """Some completions may be empty, groups of one, rewards equal, ratios 1 or from 1e-30 to 1e30; float64."""
    lengths = draw(st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any))
    return any_step(
        seed=draw(st.integers(0, 10_000)),
        lengths=lengths,
        group=draw(st.integers(1, 3)),
        reach=draw(st.sampled_from([EXTREME, 3.0, 0.3, 1e-4, 0.0])),
        rewards=draw(st.sampled_from(["real", "binary", "equal"])),
    )


def any_step(
    seed: int, lengths: list[int], group: int = 2, reach: float = 1.0, rewards: str = "real", experts: float = 0.3
) -> Step:
    """Log ratios within +- reach, a third at its ends, half of the completions drifted one way; no log-prob above 0."""
    generator = torch.Generator().manual_seed(seed)
    of = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    groups = torch.arange(len(lengths)) // group

    def uniform(n: int = len(of)) -> Tensor:
        return torch.rand(n, generator=generator, dtype=torch.float64)

    def log_ratios() -> Tensor:
        d = 2 * uniform() - 1
        ends = d.sign() * (1 - uniform() / 100)  # no two the same: of equal ones M2PO leaves out the later
        d = torch.where(uniform() < 1 / 3, ends, d)
        one_way = (uniform(len(lengths)) - 0.5).sign()[of] * d.abs()
        return reach * torch.where((uniform(len(lengths)) < 0.5)[of], one_way, d)

    d, base = log_ratios(), -3 * uniform()
    policy = base + d.clamp(max=0)
    earned = {"equal": torch.ones(len(lengths)), "binary": uniform(len(lengths)).round()}
    given = earned.get(rewards, uniform(len(lengths))).double()
    others = {name: (policy - log_ratios()).clamp(max=-1e-3) for name in ("proximal", "preceding", "ref")}
    known = {field.name for field in dataclasses.fields(Step)}
    optional = {f"{name}_logprobs": values for name, values in others.items()}
    optional |= {"entropy": 3 * uniform(), "micro_batch_of": of // 2}
    optional |= {"expert": (uniform(len(lengths)) < experts)[of], "replayed": (uniform(len(lengths)) < 0.4)[of]}
    return Step(
        policy_logprobs=policy,
        behavior_logprobs=base - d.clamp(min=0),
        advantages=group_advantages(given, groups)[of],
        sequence_of=of,
        group_of=groups,
        rewards=given,
        **{name: values for name, values in optional.items() if name in known},
    )


def choices_of(name: str) -> list[dict[str, object]]:
    """The defaults of an objective, and every other choice that one of its knobs has."""
    chosen: list[dict[str, object]] = [{}]
    for knob in knobs_of(OBJECTIVES[name]):
        chosen += [{knob.name: choice} for choice in knob.choices or ((True, False) if knob.kind is bool else ())]
    return chosen


def cast(step: Step, dtype: torch.dtype) -> Step:
    """The same step in another precision."""
    floats = {k: v for k, v in vars(step).items() if isinstance(v, Tensor) and v.is_floating_point()}
    return dataclasses.replace(step, **{name: values.to(dtype) for name, values in floats.items()})


def of_tokens(step: Step) -> dict[str, Tensor]:
    """The fields that have a value for each token and are there."""
    return {name: getattr(step, name) for name in OF_TOKENS if getattr(step, name) is not None}


def with_policy_everywhere(step: Step) -> Step:
    """The step as if every other policy had the log-probs of this one."""
    others = [name for name in of_tokens(step) if name.endswith("_logprobs")]
    return dataclasses.replace(step, **dict.fromkeys(others, step.policy_logprobs))


def with_tokens(step: Step, tokens: Tensor) -> Step:
    """The step with its tokens in this order, or only these of them."""
    return dataclasses.replace(step, **{name: values[tokens] for name, values in of_tokens(step).items()})


def with_completions(step: Step, order: Tensor) -> Step:
    """The step with its completions numbered anew: the first becomes that which was order[0]."""
    return dataclasses.replace(
        step,
        sequence_of=order.argsort()[step.sequence_of],
        group_of=step.group_of[order],
        rewards=step.rewards[order],
    )
