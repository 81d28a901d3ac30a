"""The configuration's keys: each bounded, with its unit in its name or its docstring.

Sections are frozen; unknown keys are errors. What no single key can know (combinations that cannot
work) is refused by `Config`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, SecretStr, model_validator

from shared.config.access import access_problems, check_token
from shared.config.credentials import without_credentials
from shared.sampling import filter_problems, temperature_problems

Beta = Annotated[float, Field(ge=0, lt=1)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Port = Annotated[int, Field(ge=0, le=65_535)]

BYTES_PER_TOKEN = 10  # int32 id, float32 log-prob, mask bit, source and version runs, rounded up
BYTES_PER_TRAJECTORY = 512  # reward names, sampling settings, msgpack framing, rounded up


def _good_token(token: SecretStr) -> SecretStr:
    check_token(token.get_secret_value())
    return token


Token = Annotated[SecretStr, AfterValidator(_good_token)]


class Section(BaseModel):
    """A part of the configuration: unknown keys are errors, values cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


def _default_kind(kind: str) -> BeforeValidator:
    """Fills in `kind` where a section is given without it, so that one key of it can be set alone."""

    def fill(value: Any) -> Any:
        return {"kind": kind, **value} if isinstance(value, dict) and "kind" not in value else value

    return BeforeValidator(fill)


class RunConfig(Section):
    """Who this run is and where it keeps its files."""

    id: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    """Name of the run: part of every Redis key, so two runs can share one Redis."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of the prompt order, of sampling and of the learner."""
    folder: Path = Path("runs/run")
    """Where policy versions, checkpoints, history, plot and logs go."""


class TinyModelConfig(Section):
    """A small Qwen3 that the project makes itself: tokenizer, weights, a short supervised warm start."""

    seed: int = Field(0, ge=0, lt=2**31)
    """Of the weights and of the warm start; independent of the run's, so that runs can share one model."""
    vocab_size: int = Field(512, ge=300, le=65_536)
    """The most entries that the tokenizer may have."""
    hidden_size: int = Field(128, ge=16, le=4096)
    intermediate_size: int = Field(256, ge=16, le=16_384)
    num_hidden_layers: int = Field(3, ge=1, le=64)
    num_attention_heads: int = Field(4, ge=1, le=64)
    num_key_value_heads: int = Field(2, ge=1, le=64)
    """Divides num_attention_heads."""
    head_dim: Literal[32, 64, 128] = 32
    max_position_embeddings: int = Field(2048, ge=32, le=1_048_576)
    """Longest prompt plus completion that it can read, tokens; at least the engine's max_model_len."""
    tie_word_embeddings: bool = True
    warm_start_examples: int = Field(4000, ge=512)
    """Solved questions; the last 256 measure, the others are learned from."""
    warm_start_pool: int = Field(240, ge=1)
    """Examples that it begins with. A small pool seen often gives a policy that samples as well as it decodes."""
    warm_start_accuracy: float = Field(0.12, gt=0, le=1)
    """Greedy accuracy on the measuring examples at which it ends; below it, the pool grows."""
    warm_start_steps: int = Field(1200, ge=1)
    """The most optimizer steps."""
    warm_start_batch: int = Field(32, ge=1)
    warm_start_learning_rate: float = Field(2e-3, gt=0, le=1)


class ModelConfig(Section):
    """The model that is trained: a Hugging Face folder (config.json, tokenizer, model.safetensors)."""

    path: str = "Qwen/Qwen3-0.6B"
    """Local folder, or a name on the Hugging Face hub."""
    tiny: TinyModelConfig | None = None
    """If given, `trustbatch up` makes this model in `path` once, and again when these settings change."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the rollout engine's weights and of the published files."""


class RedisConfig(Section):
    """Where the stream and the control state live."""

    url: str | None = Field(None, pattern=r"^(redis|rediss|unix)://.+")
    """Address of a Redis >= 6.2. Empty: `trustbatch up` starts one of its own in the run folder.
    A user and a password in it are moved to `username` and `password`."""
    username: str | None = None
    """ACL user, if Redis asks for one."""
    password: SecretStr | None = None
    """Password, if Redis asks for one; better given by the environment than by the file."""
    password_file: Path | None = None
    """Instead of `password`: a file that holds it, such as a mounted secret."""
    tls_ca: Path | None = None
    """Certificates (PEM) that Redis's own must be signed by, for a rediss:// url. Empty: those of the system."""
    tls_certificate: Path | None = None
    """Certificate (PEM) to show to Redis, if it asks clients for one."""
    tls_key: Path | None = None
    """Key (PEM) of `tls_certificate`."""
    max_memory: ByteSize = Field(ByteSize(512 * 2**20), ge=16 * 2**20)
    """`maxmemory` of the Redis that `trustbatch up` starts. Policy noeviction."""
    appendfsync: Literal["always", "everysec"] = "everysec"
    """How often the Redis that `trustbatch up` starts makes its append-only file durable."""

    @model_validator(mode="before")
    @classmethod
    def _move_credentials(cls, given: Any) -> Any:
        return without_credentials(given) if isinstance(given, dict) else given


class SamplingConfig(Section):
    """How rollout servers draw tokens. All but temperature and max_tokens must stay neutral."""

    temperature: float = Field(1.0, ge=0, le=10)
    """Divides the logits, in the engine and in the learner alike."""
    max_tokens: int = Field(16, ge=1, le=131_072)
    """Longest completion, tokens."""
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(-1, ge=-1)
    min_p: float = Field(0.0, ge=0, le=1)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float = Field(1.0, gt=0, le=2)


class VllmEngineConfig(Section):
    """vLLM's AsyncLLM inside the rollout server's process."""

    kind: Literal["vllm"] = "vllm"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    max_model_len: int = Field(2048, ge=16, le=1_048_576)
    """Longest prompt plus completion, tokens."""
    max_num_seqs: int = Field(256, ge=1, le=8192)
    """Completions in one engine batch."""
    kv_cache_gib: float = Field(0.5, gt=0, le=4096)
    """KV cache on CPU, GiB."""
    gpu_memory_utilization: float = Field(0.85, gt=0, le=0.98)
    """Share of the GPU's memory that vLLM takes."""
    tensor_parallel_size: int = Field(1, ge=1, le=64)
    enforce_eager: bool = True
    """No compilation and no graphs: a fast start, and no compiler needed."""
    startup_deadline_s: Seconds = 600.0


class TransformersEngineConfig(Section):
    """transformers' own generation: slow, exact, for machines without vLLM and for tests."""

    kind: Literal["transformers"] = "transformers"
    device: Literal["auto", "cpu", "cuda"] = "auto"


EngineConfig = Annotated[
    VllmEngineConfig | TransformersEngineConfig, Field(discriminator="kind"), _default_kind("vllm")
]


class RolloutConfig(Section):
    """The rollout servers."""

    servers: int = Field(1, ge=0, le=64)
    """How many `trustbatch up` starts on this machine."""
    engine: EngineConfig = VllmEngineConfig()
    sampling: SamplingConfig = SamplingConfig()
    group_size: int = Field(8, ge=1, le=1024)
    """Completions of one prompt."""
    experts: int = Field(0, ge=0, le=64)
    """Expert answers added to every group, for an objective that learns from them (chord).
    The environment gives them, over and over if it has fewer."""
    groups_in_flight: int = Field(16, ge=1, le=4096)
    """Groups that one server generates at once."""
    lag: int = Field(0, ge=0, le=1024)
    """Versions behind the latest that a server serves on purpose."""
    reward_deadline_s: Seconds = 30.0
    """Time that the scorer has for one completion; beyond it the group is an infrastructure failure."""
    reward_workers: int = Field(1, ge=1, le=64)
    """Threads that score completions outside the event loop."""
    proof_tolerance_nats: float | None = Field(None, gt=0, le=10)
    """Largest difference between a loaded version and its probe. Empty: 1e-3 in float32, 0.5 in bfloat16."""


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
    ReasoningGymConfig | PythonEnvironmentConfig, Field(discriminator="kind"), _default_kind("reasoning_gym")
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


class ObjectiveConfig(Section):
    """The objective by its name, and its knobs beside it; `trustbatch objectives` lists them.

    Names, bounds and defaults of the knobs are those of the objective's own function, so the learner checks them.
    """

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    name: str = "p3o"

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given

    @property
    def knobs(self) -> dict[str, Any]:
        """What is set beside the name."""
        return dict(self.model_extra or {})


class LearnerConfig(Section):
    """The learner. A batch of groups is cut into `minibatches` optimizer steps, `passes` times over."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    objective: ObjectiveConfig = ObjectiveConfig()
    shadows: tuple[ObjectiveConfig, ...] = Field((), max_length=32)
    """Objectives that only say what they would have done with every batch: loss, weights, what they cut."""
    shadow_gradients_every: int = Field(0, ge=0)
    """Optimizer steps between comparisons of the shadows' gradients with the one taken; 0: never. A comparison
    costs a backward pass and a copy of the gradient for each shadow."""
    reference: str = ""
    """Frozen reference model, a folder or a hub name, for objectives that need one. Empty: the starting model."""
    advantage: Literal["group_std", "group_mean", "leave_one_out"] = "group_std"
    """Reward baseline and scale within a group."""
    overlong_buffer: int = Field(0, ge=0, le=131_072)
    """DAPO's soft punishment: over the last so many tokens before max_tokens a completion's reward falls by up to 1.
    0: none."""
    groups_per_batch: int = Field(32, ge=1, le=65_536)
    minibatches: int = Field(1, ge=1, le=1024)
    """Optimizer steps that one pass over a batch is cut into."""
    passes: int = Field(1, ge=1, le=64)
    """Times that a batch is gone through; a group is applied when its last pass is."""
    steps: int = Field(1000, ge=1)
    """Optimizer steps after which the run is over."""
    target_heldout_accuracy: float | None = Field(None, gt=0, le=1)
    """Ends the run earlier, when an evaluation reaches it."""
    learning_rate: float = Field(1e-6, ge=0, le=1)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = Field(0, ge=0)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    weight_decay: float = Field(0.0, ge=0, le=1)
    max_grad_norm: float = Field(1.0, gt=0)
    micro_batch_tokens: int = Field(16_384, ge=16)
    """Padded tokens, prompt included, in one forward and backward pass."""
    publish_every: int = Field(1, ge=1)
    """Optimizer steps between published versions; a multiple of minibatches x passes."""
    checkpoint_every: int = Field(50, ge=1)
    """Optimizer steps between checkpoints; a multiple of minibatches x passes."""
    keep_checkpoints: int = Field(2, ge=2, le=100)
    """Durable checkpoints kept; two are needed to fall back by one."""
    retain_versions: int = Field(4, ge=1, le=100_000)
    """Published versions kept beyond those that a lag still needs."""
    max_nonfinite_steps: int = Field(3, ge=1, le=1000)
    """Skipped non-finite steps in a row that end the run."""
    record_bytes: ByteSize = Field(ByteSize(64 * 2**20), ge=0)
    """Flight recorder: bytes of optimizer steps kept in the run folder, newest first; 0: none."""
    record_every: int = Field(1, ge=1)
    """Optimizer steps between two that are recorded; a skipped one always is."""
    idle_deadline_s: Seconds = 600.0
    """Longest wait for a group before the run ends with the reason."""
    shuffle_rewards: bool = False
    """A control experiment: rewards are permuted among all trajectories of a batch; nothing can be learned."""

    @property
    def steps_per_batch(self) -> int:
        """Optimizer steps that consume one batch of groups."""
        return self.minibatches * self.passes

    @property
    def groups_per_publish(self) -> int:
        """Groups applied between two published versions."""
        return self.groups_per_batch * (self.publish_every // self.steps_per_batch)


class AdmissionConfig(Section):
    """What rollout servers may ask for before the learner has caught up."""

    max_staleness: int = Field(4, ge=0, le=4096)
    """Versions beyond the lag that was asked for. 0 with lag 0 is the synchronous run."""
    max_bytes: ByteSize = Field(ByteSize(128 * 2**20), ge=2**20)
    """All that the stream may hold in Redis, acknowledged or not."""
    dead_letter_bytes: ByteSize = Field(ByteSize(16 * 2**20), ge=2**16)
    """All that the dead letters may hold in Redis, beside max_bytes; the oldest are dropped first, and counted."""
    lease_s: Seconds = 30.0
    """Leases and heartbeats that are not renewed for this long return to the pool."""


class ControlPlaneConfig(Section):
    """The HTTP control plane and dashboard."""

    host: str = "127.0.0.1"
    port: Port = 0
    """0 takes a free port and prints it."""
    auth: Literal["token", "none"] = "token"
    """Who may ask: holders of a token, or (on a loopback host only) everybody on this machine.
    `trustbatch up` makes a token in the run folder where none is given."""
    read_token: Token | None = None
    """Bearer token that may look."""
    read_token_file: Path | None = None
    """Instead of `read_token`: a file that holds it."""
    operate_token: Token | None = None
    """Bearer token that may look, pause and resume."""
    operate_token_file: Path | None = None
    """Instead of `operate_token`: a file that holds it."""
    tls_certificate: Path | None = None
    """Certificate chain (PEM); with it and `tls_key` the control plane speaks https."""
    tls_key: Path | None = None
    """Key (PEM) of `tls_certificate`, without a passphrase."""
    requests_per_minute: int = Field(600, ge=10, le=1_000_000)
    """What one client may ask for, a tenth of it at once; liveness probes do not count."""


class MetricsConfig(Section):
    """Prometheus endpoints of the learner and the rollout servers."""

    host: str = "127.0.0.1"
    port: Port = 0
    """0 takes a free port; it is shown by the control plane."""


class Config(Section):
    """The whole configuration of a run."""

    run: RunConfig = RunConfig()
    model: ModelConfig = ModelConfig()
    redis: RedisConfig = RedisConfig()
    rollout: RolloutConfig = RolloutConfig()
    environment: EnvironmentConfig = ReasoningGymConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    learner: LearnerConfig = LearnerConfig()
    admission: AdmissionConfig = AdmissionConfig()
    control_plane: ControlPlaneConfig = ControlPlaneConfig()
    metrics: MetricsConfig = MetricsConfig()

    @property
    def synchronous(self) -> bool:
        """True for the on-policy run: every group is drawn by the version that it updates."""
        return self.admission.max_staleness == 0 and self.rollout.lag == 0

    @property
    def group_bytes_bound(self) -> int:
        """The most bytes that one group can take in the stream."""
        prompt = getattr(self.rollout.engine, "max_model_len", 2048)
        trajectories = self.rollout.group_size + self.rollout.experts
        trajectory = self.rollout.sampling.max_tokens * BYTES_PER_TOKEN + BYTES_PER_TRAJECTORY
        return int(4 * prompt + trajectories * trajectory + 1024)

    @model_validator(mode="after")
    def _combinations(self) -> Config:
        problems = list(
            chain(
                _steps(self.learner),
                _versions(self),
                _memory(self),
                _drawing(self.rollout, self.learner),
                _tiny(self),
                access_problems(self.redis, self.control_plane),
                _overlong(self),
            )
        )
        if problems:
            raise ValueError("\n  ".join(problems))
        return self


def _steps(learner: LearnerConfig) -> Iterator[str]:
    yield from _multiple(
        "learner.groups_per_batch", learner.groups_per_batch, "learner.minibatches", learner.minibatches
    )
    per_batch = "learner.minibatches x learner.passes"
    for name in ("publish_every", "checkpoint_every", "steps"):
        yield from _multiple(f"learner.{name}", getattr(learner, name), per_batch, learner.steps_per_batch)
    if learner.warmup_steps > learner.steps:
        yield f"learner.warmup_steps is {learner.warmup_steps}; it must be at most learner.steps ({learner.steps})"


def _versions(config: Config) -> Iterator[str]:
    learner = config.learner
    if config.admission.max_staleness == 0 and learner.publish_every != learner.steps_per_batch:
        yield (
            f"admission.max_staleness is 0, so every batch must be published before the next is drawn: "
            f"learner.publish_every must be {learner.steps_per_batch}, not {learner.publish_every}"
        )


def _memory(config: Config) -> Iterator[str]:
    groups, most = config.learner.groups_per_batch, config.admission.max_bytes
    needed = groups * config.group_bytes_bound
    if most < needed:
        yield (
            f"admission.max_bytes is {most:,}, but one batch of {groups} groups "
            f"may take {needed:,} bytes: raise it, or lower learner.groups_per_batch, rollout.group_size "
            "or rollout.sampling.max_tokens"
        )
    letters = config.admission.dead_letter_bytes
    if config.redis.url is None and config.redis.max_memory < 2 * most + letters:
        yield (
            f"redis.max_memory is {config.redis.max_memory:,}; it must be at least twice admission.max_bytes "
            f"({most:,}) and admission.dead_letter_bytes ({letters:,}), so that heartbeats and acknowledgements "
            "always fit"
        )


def _drawing(rollout: RolloutConfig, learner: LearnerConfig) -> Iterator[str]:
    for problem in temperature_problems(rollout.sampling) + filter_problems(rollout.sampling):
        yield f"rollout.{problem}"
    longest, engine = rollout.sampling.max_tokens, rollout.engine
    if isinstance(engine, VllmEngineConfig) and longest >= engine.max_model_len:
        yield (
            f"rollout.sampling.max_tokens is {longest}; it must be below rollout.engine.max_model_len "
            f"({engine.max_model_len}), which the prompt needs its part of"
        )
    if rollout.group_size == 1:
        yield (
            f"rollout.group_size is 1; it must be at least 2, because learner.advantage {learner.advantage} compares "
            "the completions of a group with each other"
        )


def _overlong(config: Config) -> Iterator[str]:
    buffer, longest = config.learner.overlong_buffer, config.rollout.sampling.max_tokens
    if buffer > longest:
        yield f"learner.overlong_buffer is {buffer}; it must be at most rollout.sampling.max_tokens ({longest})"


def _tiny(config: Config) -> Iterator[str]:
    tiny, engine = config.model.tiny, config.rollout.engine
    if tiny is None:
        return
    yield from _multiple(
        "model.tiny.num_attention_heads",
        tiny.num_attention_heads,
        "model.tiny.num_key_value_heads",
        tiny.num_key_value_heads,
    )
    if isinstance(engine, VllmEngineConfig) and tiny.max_position_embeddings < engine.max_model_len:
        yield (
            f"model.tiny.max_position_embeddings is {tiny.max_position_embeddings}; it must be at least "
            f"rollout.engine.max_model_len ({engine.max_model_len})"
        )


def _multiple(name: str, value: int, of: str, unit: int) -> Iterator[str]:
    if value % unit:
        yield f"{name} is {value}; it must be a multiple of {of} ({unit})"
