from __future__ import annotations

import asyncio
import math
from typing import Any

import numpy as np
import pytest

from rollout.environments.base import Continue, Done, Setup, Task, checked
from rollout.environments.failure import Failure, reason_of
from rollout.environments.transcript import EMPTY, Transcript
from shared.errors import EnvironmentFailure
from shared.types import Completion, VersionSpan
from tests.rollout.worlds import Parity, TwoTurns

SETUP = Setup(seed=0, tokenizer=None, heldout_prompts=1, deadline_s=0.05, workers=1)
ANSWERED = EMPTY.with_completion(
    Completion(np.asarray([8], dtype=np.int32), np.zeros(1, dtype=np.float32), (VersionSpan(0, 0, 1),), "stop")
)


@pytest.mark.parametrize("reward", [math.nan, math.inf, None, "1"])
def test_a_reward_that_is_no_finite_number_is_a_failure(reward: Any) -> None:
    with pytest.raises(Failure, match="reward must be a finite number"):
        checked(Done(reward, {}))
    with pytest.raises(Failure, match="style is"):
        checked(Done(1.0, {"style": reward}))


def test_an_answer_of_another_kind_is_a_failure() -> None:
    with pytest.raises(Failure, match="answered float, not Continue or Done"):
        checked(1.0)


def test_failures_are_counted_by_reason() -> None:
    assert reason_of(Failure("hung", "...")) == "hung"
    assert reason_of(EnvironmentFailure("a user's own")) == "raised"


@pytest.mark.asyncio
async def test_a_step_has_a_deadline() -> None:
    class Slow(TwoTurns):
        async def step(self, task: Task, transcript: Transcript) -> Continue | Done:
            await asyncio.sleep(10)
            return Done(0.0, {})

    environment = Slow(SETUP)
    with pytest.raises(Failure, match=r"two-turns: no answer within 0\.05 s"):
        await environment.act(environment.task(0), ANSWERED)


@pytest.mark.asyncio
async def test_a_single_turn_is_scored_on_the_policy_s_tokens() -> None:
    environment = Parity(SETUP)
    assert await environment.act(environment.task(0), ANSWERED) == Done(1.0, {"even": 1.0})
    await environment.close()
