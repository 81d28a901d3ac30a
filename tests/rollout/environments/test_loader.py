from __future__ import annotations

import pytest

from rollout.environments.loader import load_environment
from rollout.environments.reasoning_gym import ReasoningGym
from shared.config import load_config
from shared.errors import ConfigError
from tests.rollout.models import byte_tokenizer
from tests.rollout.worlds import Failing


def test_reasoning_gym_is_built_with_the_run_s_settings() -> None:
    overrides = ["run.seed=4", "evaluation.prompts=16", "rollout.reward_deadline_s=2", "environment.kind=reasoning_gym"]
    environment = load_environment(load_config(None, [*overrides, "environment.dataset=gcd"], {}), byte_tokenizer())
    assert isinstance(environment, ReasoningGym)
    assert environment.name == "reasoning_gym/gcd"
    assert (environment.setup.seed, environment.setup.heldout_prompts, environment.setup.deadline_s) == (4, 16, 2.0)


def from_path(path: str, *overrides: str) -> object:
    kind = ["environment.kind=python", f"environment.path={path}"]
    return load_environment(load_config(None, [*kind, *overrides], {}), None)


def test_a_user_s_own_class_is_given_the_setup_and_its_params() -> None:
    environment = from_path("tests.rollout.worlds:Failing", "environment.params.broken=[1]")
    assert isinstance(environment, Failing)
    assert environment.setup.seed == 0


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (
            "tests.nowhere:World",
            "cannot import tests.nowhere: No module named 'tests.nowhere'; is its folder on PYTHONPATH",
        ),
        ("tests.rollout.worlds:Nothing", "tests.rollout.worlds has no Nothing"),
        (
            "tests.rollout.worlds:NotAnEnvironment",
            "not a class that derives from rollout.environments.base.Environment",
        ),
        ("tests.rollout.worlds:HELDOUT", "not a class that derives from"),
        ("tests.rollout.worlds:Careless", r"__init__ must call super\(\).__init__\(setup\)"),
        ("tests.rollout.worlds:Unfinished", "lacks heldout, step, which an environment must have"),
    ],
)
def test_a_path_that_does_not_lead_to_an_environment_is_refused(path: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        from_path(path)


def test_params_that_the_class_does_not_take_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"environment.params .*Failing\(setup: .*unexpected keyword argument 'depth'"
    ):
        from_path("tests.rollout.worlds:Failing", "environment.params.depth=3")
