"""Keys of the learner and its objectives."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ByteSize, Field

from shared.config.section import Named, Seconds, Section

Beta = Annotated[float, Field(ge=0, lt=1)]


class ObjectiveConfig(Named):
    """The objective by its name, and its knobs beside it; `trustbatch objectives` lists them.

    Names, bounds and defaults of the knobs are those of the objective's own function, so the learner checks them.
    """

    name: str = "p3o"


class LearnerConfig(Section):
    """The learner. A batch of groups is cut into `minibatches` optimizer steps, `passes` times over."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    objective: ObjectiveConfig = ObjectiveConfig()
    shadows: tuple[ObjectiveConfig, ...] = Field((), max_length=32)
    """Objectives that only say what they would have done with every batch: loss, weights, what they cut."""
    shadow_gradients_every: int = Field(0, ge=0)
    """Optimizer steps between comparisons of the shadows' gradients with the one taken; 0: never. A comparison
    costs a backward pass and a copy of the gradient for each shadow."""
    entropy: bool = False
    """Measures the policy's entropy in every step, also where no objective needs it: one more pass over the logits."""
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
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    """adamw keeps two numbers for every weight, adafactor next to none; its learning rate is relative to the size of
    the weights, and it takes no betas."""
    learning_rate: float = Field(1e-6, ge=0, le=1)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = Field(0, ge=0)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    weight_decay: float = Field(0.0, ge=0, le=1)
    max_grad_norm: float = Field(1.0, gt=0)
    micro_batch_tokens: int = Field(16_384, ge=16)
    """Tokens, prompts included, in one forward and backward pass; a group with a longer trajectory is refused."""
    matrix_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of matrix products; weights, their updates and all sums stay float32. auto: model.dtype on CUDA,
    float32 on a CPU."""
    activation_checkpointing: bool = False
    """Keeps each layer's input only and computes the rest again in the backward pass: less memory, a third more
    work."""
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
    floor_every: int | None = Field(None, ge=0)
    """Optimizer steps between samples whose log ratios are split into the engine's part and the learner's way since;
    0: none. A sample loads one published version beside the model for a moment. Empty: 20 where the published weights
    take at most 1 GiB and lie in a folder; else 0."""
    floor_groups: int = Field(4, ge=1, le=1024)
    """Groups in such a sample."""
    examples_bytes: ByteSize = Field(ByteSize(8 * 2**20), ge=0)
    """Bytes of Redis for the groups of the newest steps that their ratios hang on, as text; 0: none."""
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
