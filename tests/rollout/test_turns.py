"""Turns and masks."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from rollout.environments.base import Continue, Done, Environment, Setup, Task
from rollout.environments.transcript import Transcript
from rollout.turns import Player
from shared.errors import EnvironmentFailure
from shared.types import (
    Completion,
    SamplingSettings,
    Source,
    Trajectory,
    VersionSpan,
)
from tests.rollout.scripted import Scripted, said
from tests.rollout.worlds import Parity, TwoTurns

pytestmark = pytest.mark.asyncio
SETUP = Setup(seed=0, tokenizer=None, heldout_prompts=1, deadline_s=60.0, workers=1)


async def play(environment: Environment, engine: Scripted, n: int = 1, max_tokens: int = 16) -> tuple[Trajectory, ...]:
    player = Player(engine, environment, max_model_len=100)
    return await player.play(environment.task(4), n, SamplingSettings(max_tokens=max_tokens))


async def test_a_group_begins_with_one_request_and_goes_on_with_one_for_each_trajectory() -> None:
    engine = Scripted(said(50, 51), said(60), said(52), said(61, version=1))
    first, second = await play(TwoTurns(SETUP), engine, n=2)
    assert engine.asked == [([10, 4], 2, 16), ([10, 4, 50, 51, 1, 2, 3], 1, 11), ([10, 4, 60, 1, 2, 3], 1, 12)]
    assert first.token_ids.tolist() == [50, 51, 1, 2, 3, 52]
    assert first.source.tolist() == [Source.POLICY] * 2 + [Source.ENVIRONMENT] * 3 + [Source.POLICY]
    assert first.loss_mask.tolist() == [True, True, False, False, False, True]
    assert first.behavior_logprobs.tolist() == [-0.5, -0.5, 0, 0, 0, -0.5]
    assert first.versions == (VersionSpan(0, 0, 6),)
    assert (first.reward, first.rewards) == (3.0, {"spoken": 3.0})
    assert second.versions == (VersionSpan(0, 0, 4), VersionSpan(1, 4, 5))
    assert second.token_versions().tolist() == [0, 0, 0, 0, 1]


async def test_a_turn_that_was_cut_by_the_token_budget_is_the_last() -> None:
    engine = Scripted(said(50, 51, 52, reason="length"))
    [t] = await play(TwoTurns(SETUP), engine, max_tokens=3)
    assert (t.token_ids.tolist(), t.finish_reason, t.reward) == ([50, 51, 52], "length", 3.0)


async def test_an_answer_that_leaves_no_room_for_another_turn_is_not_given() -> None:
    engine = Scripted(said(50, 51))
    [t] = await play(TwoTurns(SETUP), engine, max_tokens=5)
    assert (t.token_ids.tolist(), t.finish_reason, t.reward) == ([50, 51], "length", 2.0)


async def test_an_environment_that_never_ends_is_a_failure() -> None:
    class Endless(TwoTurns):
        async def step(self, task: Task, transcript: Transcript) -> Continue | Done:
            return Continue(self.question)

    engine = Scripted(*(said(50, 51) for _ in range(9)))
    with pytest.raises(EnvironmentFailure, match="two-turns: Continue after the last token was spent; say Done"):
        await play(Endless(SETUP), engine)


@pytest.mark.parametrize(
    ("completion", "words"),
    [
        (said(50, logprob=float("nan")), "not finite"),
        (said(50, logprob=float("-inf")), "not finite"),
        (said(50, reason="abort"), r"after 1 tokens \(abort\)"),
        (said(), "after 0 tokens"),
    ],
)
async def test_a_completion_that_no_learner_can_use_fails_its_group(completion: Completion, words: str) -> None:
    with pytest.raises(EnvironmentFailure, match=words):
        await play(Parity(SETUP), Scripted(said(50), completion), n=2)


async def test_a_prompt_that_does_not_fit_is_refused_before_it_reaches_the_engine() -> None:
    engine = Scripted()
    with pytest.raises(EnvironmentFailure, match=r"prompt of 3 tokens and rollout.sampling.max_tokens 98 exceed"):
        await play(Parity(SETUP), engine, max_tokens=98)
    assert engine.asked == []


async def test_whatever_an_environment_raises_is_a_failure_of_its_own_name() -> None:
    class Lost(TwoTurns):
        async def step(self, task: Task, transcript: Transcript) -> Continue | Done:
            raise KeyError("lost")

    with pytest.raises(EnvironmentFailure, match="two-turns: KeyError: 'lost'"):
        await play(Lost(SETUP), Scripted(said(50), said(60)), n=2)


async def test_a_trajectory_that_fails_ends_the_others_of_its_group() -> None:
    ended: list[int] = []

    class Uneven(TwoTurns):
        async def step(self, task: Task, transcript: Transcript) -> Continue | Done:
            first = int(transcript.token_ids[0])
            try:
                await asyncio.sleep(0 if first == 60 else 0.5)
                raise KeyError("lost")
            finally:
                ended.append(first)

    with pytest.raises(EnvironmentFailure):
        await play(Uneven(SETUP), Scripted(said(50), said(60)), n=2)
    await asyncio.sleep(0)
    assert ended == [60, 50]


async def test_an_expert_s_answers_follow_the_group_s_own_completions_and_are_scored_like_them() -> None:
    engine = Scripted(said(50, 51, version=3), said(61, version=3))
    player = Player(engine, Parity(SETUP), max_model_len=100)
    experts = [np.asarray([8, 9, 7], dtype=np.int32), np.asarray([9], dtype=np.int32)]
    sampling = SamplingSettings(max_tokens=5, temperature=0.5)
    trajectories = await player.play(Parity(SETUP).task(4), 2, sampling, experts)
    assert [t.by_expert for t in trajectories] == [False, False, True, True]
    assert [t.reward for t in trajectories] == [1.0, 0.0, 1.0, 0.0]
    assert engine.asked == [([10, 11, 4], 2, 5)], "nothing is drawn for an expert"
    t = trajectories[2]
    assert t.token_ids.tolist() == [8, 9, 7]
    assert t.source.tolist() == [Source.EXPERT] * 3
    assert t.loss_mask.tolist() == [True] * 3
    assert t.behavior_logprobs.tolist() == [0.0] * 3
    assert t.versions == (VersionSpan(3, 0, 3),)
    assert (t.rewards, t.finish_reason, t.sampling) == ({"even": 1.0}, "stop", sampling)


async def test_an_environment_that_asks_an_expert_back_fails_the_group() -> None:
    player = Player(Scripted(said(50), said(51)), TwoTurns(SETUP), max_model_len=100)
    with pytest.raises(EnvironmentFailure, match="Continue after an expert's whole answer; say Done"):
        await player.play(TwoTurns(SETUP).task(4), 1, SamplingSettings(), [np.asarray([8], dtype=np.int32)])
