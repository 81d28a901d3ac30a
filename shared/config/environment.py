"""Keys of the environment, which gives prompts and rewards, and of the evaluation on held-out prompts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from shared.config.section import Seconds, Section, default_kind


class ReasoningGymConfig(Section):
    """A task of reasoning-gym by its name, scored by its own scorer (1.0 counts, partial credit does not)."""

    kind: Literal["reasoning_gym"] = "reasoning_gym"
    dataset: str = "chain_sum"
    params: dict[str, Any] = Field(default_factory=dict)
    """Arguments of `reasoning_gym.create_dataset`."""
    system_prompt: str = ""
    """Put before every question, for example how to answer. A final <answer> element is what gets scored."""
    chat_template: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the tokenizer's chat template, for example enable_thinking: false."""


class PythonEnvironmentConfig(Section):
    """A user's own environment, from the operator's own configuration only."""

    kind: Literal["python"] = "python"
    path: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    """Import path `package.module:Class`."""
    params: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the class, after the setup that every environment is given first."""


EnvironmentConfig = Annotated[
    ReasoningGymConfig | PythonEnvironmentConfig, Field(discriminator="kind"), default_kind("reasoning_gym")
]


class EvaluationConfig(Section):
    """Held-out evaluation, on a rollout engine, at a stated version."""

    prompts: int = Field(256, ge=1, le=100_000)
    """Held-out prompts, disjoint by content from every training prompt."""
    every: int = Field(50, ge=1)
    """Versions between evaluations; the first and the last version are always evaluated."""
    temperature: float = Field(0.0, ge=0, le=10)
    """0 is greedy."""
    deadline_s: Seconds = 300.0
    """How long a claimed evaluation may take before another server may claim it."""
