"""The whole configuration: every key is in its section's file, bounded, with its unit in its name or its docstring.

Sections are frozen; unknown keys are errors. What no single key can know (combinations that cannot
work) is refused by `Config`.
"""

from __future__ import annotations

from pydantic import model_validator

from shared.config.combinations import combination_problems
from shared.config.controller import ControllerConfig
from shared.config.environment import EnvironmentConfig, EvaluationConfig, ReasoningGymConfig
from shared.config.lag import LagSetting, from_wish
from shared.config.learner import LearnerConfig
from shared.config.network import ControlPlaneConfig, MetricsConfig, RedisConfig
from shared.config.rollout import AdmissionConfig, RolloutConfig
from shared.config.run import ModelConfig, RunConfig
from shared.config.section import Section
from shared.config.store import StoreConfig

BYTES_PER_TOKEN = 10  # int32 id, float32 log-prob, mask bit, source and version runs, rounded up
BYTES_PER_TRAJECTORY = 512  # reward names, sampling settings, msgpack framing, rounded up


class Config(Section):
    """The whole configuration of a run."""

    run: RunConfig = RunConfig()
    model: ModelConfig = ModelConfig()
    redis: RedisConfig = RedisConfig()
    store: StoreConfig = StoreConfig()
    rollout: RolloutConfig = RolloutConfig()
    environment: EnvironmentConfig = ReasoningGymConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    learner: LearnerConfig = LearnerConfig()
    admission: AdmissionConfig = AdmissionConfig()
    control_plane: ControlPlaneConfig = ControlPlaneConfig()
    controller: ControllerConfig = ControllerConfig()
    metrics: MetricsConfig = MetricsConfig()

    @property
    def engine_dtype(self) -> str:
        """The precision that the rollout engine computes in."""
        wanted = self.rollout.engine.dtype
        return self.model.dtype if wanted == "model" else wanted

    @property
    def group_bytes_bound(self) -> int:
        """The most bytes that one group can take in the stream."""
        prompt = getattr(self.rollout.engine, "max_model_len", 2048)
        trajectories = self.rollout.group_size + self.rollout.experts
        trajectory = self.rollout.sampling.max_tokens * BYTES_PER_TOKEN + BYTES_PER_TRAJECTORY
        return int(4 * prompt + trajectories * trajectory + 1024)

    def wished_lag(self, wish: bytes) -> LagSetting | None:
        """What an operator's wish asks for; None where it cannot be followed.

        It cannot be read; or it goes beyond rollout.max_lag, was asked for while weights went by files, and now they go
        over the wire, where the learner holds no older versions.
        """
        setting = from_wish(wish)
        over_the_wire = self.store.transfer.kind != "files"
        beyond = setting is not None and over_the_wire and setting.largest > self.rollout.largest_lag
        return None if beyond else setting

    @model_validator(mode="after")
    def _combinations(self) -> Config:
        problems = list(combination_problems(self))
        if problems:
            raise ValueError("\n  ".join(problems))
        return self
