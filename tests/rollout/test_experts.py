from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rollout.environments.base import Environment, Setup
from rollout.environments.failure import Failure
from rollout.experts import check_experts, expert_answers
from shared.errors import ConfigError
from tests.rollout.worlds import Parity, Taught

pytestmark = pytest.mark.asyncio
SETUP = Setup(seed=0, tokenizer=None, heldout_prompts=1, deadline_s=60.0, workers=1)


async def answers(environment: Environment, count: int, index: int = 0, max_tokens: int = 3) -> list[list[int]]:
    given = await expert_answers(environment, environment.task(index), count, max_tokens)
    assert all(ids.dtype == np.int32 for ids in given)
    return [ids.tolist() for ids in given]


@pytest.mark.parametrize("count", [0, 1, 5])
async def test_every_group_gets_as_many_as_are_asked_for_over_and_over_the_given_ones(count: int) -> None:
    assert await answers(Taught(SETUP), count) == ([[2, 257], [4, 6, 257]] * 3)[:count]


async def test_a_prompt_without_an_expert_s_answer_is_a_failure_only_where_one_is_wanted() -> None:
    assert await answers(Taught(SETUP), 0, index=3) == []
    with pytest.raises(Failure, match="parity gives no expert answer to this prompt"):
        await answers(Taught(SETUP), 1, index=3)


@pytest.mark.parametrize(
    ("given", "reason", "words"),
    [
        ([[1, 2, 3, 4]], "too long", r"takes 4 tokens; rollout\.sampling\.max_tokens is 3"),
        ([[]], "answer", "empty or no list of token ids"),
        ([[[1], [2]]], "answer", "empty or no list of token ids"),
        ([["two"]], "raised", "ValueError"),
    ],
)
async def test_an_answer_that_no_learner_can_use_is_a_failure(given: Any, reason: str, words: str) -> None:
    with pytest.raises(Failure, match=words) as caught:
        await answers(Taught(SETUP, given), 1)
    assert caught.value.reason == reason


async def test_an_environment_without_experts_is_refused_only_where_some_are_wanted() -> None:
    await check_experts(Parity(SETUP), 0)
    await check_experts(Taught(SETUP), 2)
    with pytest.raises(
        ConfigError, match=r"rollout\.experts is 2, but parity gives no expert answers: .* rollout\.experts to 0"
    ):
        await check_experts(Parity(SETUP), 2)
