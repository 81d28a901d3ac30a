"""Builds the environment that the configuration names."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from rollout.environments.base import Environment, Setup
from shared.config import Config
from shared.config.environment import PythonEnvironmentConfig, ReasoningGymConfig
from shared.errors import ConfigError


def load_environment(config: Config, tokenizer: Any) -> Environment:
    """The environment, ready to give tasks; takes seconds where its library is large. Raises ConfigError."""
    setup = Setup(
        seed=config.run.seed,
        tokenizer=tokenizer,
        heldout_prompts=config.evaluation.prompts,
        deadline_s=config.rollout.reward_deadline_s,
        workers=config.rollout.reward_workers,
    )
    if isinstance(config.environment, ReasoningGymConfig):
        return _reasoning_gym(config.environment, setup)
    return _from_path(config.environment, setup)


def _reasoning_gym(config: ReasoningGymConfig, setup: Setup) -> Environment:
    from rollout.environments.reasoning_gym import ReasoningGym

    return ReasoningGym(setup, config.dataset, config.params, config.system_prompt, config.chat_template)


def _from_path(config: PythonEnvironmentConfig, setup: Setup) -> Environment:
    found = _import(config.path)
    if not (inspect.isclass(found) and issubclass(found, Environment)):
        raise ConfigError(
            f"environment.path {config.path!r} is not a class that derives from "
            "rollout.environments.base.Environment (or its SingleTurn)"
        )
    missing = sorted(found.__abstractmethods__)
    if missing:
        raise ConfigError(
            f"environment.path {config.path!r} lacks {', '.join(missing)}, which an environment must have"
        )
    try:
        environment = found(setup, **config.params)
    except TypeError as error:
        signature = inspect.signature(found)
        raise ConfigError(
            f"environment.params {config.params}: {found.__name__}{signature} was called with the setup and these: "
            f"{error}"
        ) from error
    if not hasattr(environment, "threads"):
        raise ConfigError(f"environment.path {config.path!r}: __init__ must call super().__init__(setup)")
    return environment


def _import(path: str) -> Any:
    module_name, _, class_name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"environment.path {path!r}: cannot import {module_name}: {error}; is its folder on PYTHONPATH?"
        ) from error
    try:
        return getattr(module, class_name)
    except AttributeError:
        raise ConfigError(f"environment.path {path!r}: {module_name} has no {class_name}") from None
