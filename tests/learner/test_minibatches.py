"""How a batch of groups becomes optimizer steps."""

import numpy as np
import pytest

from learner.intake import Held
from learner.minibatches import next_steps, overlong, split
from shared.config import load_config
from shared.errors import ConfigError
from shared.types import SamplingSettings
from tests.builders import group, trajectory, with_experts

HELD = [Held(f"{i}-0", group(i), b"") for i in range(4)]


def test_a_batch_is_cut_in_the_order_of_arrival_and_gone_through_pass_by_pass() -> None:
    sizes = {"groups_per_batch": 4, "minibatches": 2, "passes": 2, "publish_every": 4, "checkpoint_every": 4}
    config = load_config(None, [f"learner.{key}={value}" for key, value in sizes.items()], {}).learner
    minibatches = split(HELD, config, seed=0, number=0)
    assert [[h.group.prompt_index for h in m.held] for m in minibatches] == [[0, 1], [2, 3]]
    order = [(m.held[0].group.prompt_index, number) for m, number in next_steps(minibatches, config.passes)]
    assert order == [(0, 0), (2, 0), (0, 1), (2, 1)]


def test_too_long_completions_lose_reward_before_advantages_are_made() -> None:
    """Of at most 10 tokens, the last 4 cost a quarter each: lengths 6, 8 and 10 lose 0, .5 and 1."""
    of_ten = SamplingSettings(max_tokens=10)
    long = group(0, trajectories=tuple(trajectory(n, sampling=of_ten, reward=1.0) for n in (6, 8, 10)))
    assert overlong(long, 4).tolist() == [0.0, -0.5, -1.0]
    options = ["learner.overlong_buffer=4", "learner.groups_per_batch=1", "learner.advantage=group_mean"]
    (minibatch,) = split([Held("0-0", long, b"")], load_config(None, options, {}).learner, seed=0, number=0)
    assert minibatch.step_batch.rewards.tolist() == [1.0, 0.5, 0.0]
    advantages = np.concatenate([m.advantages.numpy() for m in minibatch.step_batch.micro_batches])
    assert sorted(set(advantages.tolist())) == [-0.5, 0.0, 0.5]


def test_an_experts_answer_is_never_too_long() -> None:
    assert overlong(with_experts(group(0), 2), 16)[-2:].tolist() == [0.0, 0.0]


def test_a_buffer_beyond_the_longest_completion_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"learner.overlong_buffer is 99; it must be at most"):
        load_config(None, ["learner.overlong_buffer=99", "rollout.sampling.max_tokens=16"], {})
