from __future__ import annotations

from pathlib import Path

import pytest

from rollout.evaluation import Evaluator, servable
from rollout.turns import Player
from shared.config import Config
from shared.errors import EnvironmentFailure
from shared.types import Completion
from tests.rollout.run import small
from tests.rollout.scripted import Scripted, said
from tests.rollout.test_turns import SETUP
from tests.rollout.worlds import Parity


@pytest.mark.parametrize(
    ("pending", "served", "expected"),
    [([], 3, None), ([4], 3, None), ([3], 3, 3), ([0, 2, 5], 3, 0), ([0, 2], 9, 0)],
)
def test_a_job_is_for_its_version_or_a_later_one(pending: list[int], served: int, expected: int | None) -> None:
    assert servable(pending, served) == expected


def evaluator(config: Config, *answers: Completion) -> tuple[Evaluator, Scripted]:
    engine, environment = Scripted(*answers), Parity(SETUP)
    return Evaluator(config, Player(engine, environment, 100), environment, "r0", (1,)), engine


@pytest.fixture
def three(config: Config, tiny_model: Path) -> Config:
    return small(config, tiny_model, "evaluation.prompts=3", "rollout.groups_in_flight=1", "rollout.group_size=2")


@pytest.mark.asyncio
async def test_accuracy_and_length_are_means_over_the_prompts(three: Config) -> None:
    asked, engine = evaluator(three, said(2, version=5), said(3, 3, version=5), said(4, 4, 4, version=5))
    result = await asked.evaluate(5)
    assert (result.policy_version, result.prompts, result.mean_length) == (5, 3, 2.0)
    assert result.accuracy == pytest.approx(2 / 3)
    assert [n for _, n, _ in engine.asked] == [1, 1, 1]


@pytest.mark.asyncio
async def test_an_answer_of_another_version_spoils_the_evaluation(three: Config) -> None:
    asked, _ = evaluator(three, said(2, version=5), said(2, version=6), said(2, version=5))
    with pytest.raises(EnvironmentFailure, match=r"versions \[5, 6\] answered an evaluation of version 5"):
        await asked.evaluate(5)
