"""Keys of the run: its name and folder, and the model that it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from shared.config.section import Section

RUN_ID = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"


class RunConfig(Section):
    """Who this run is and where it keeps its files."""

    id: str = Field("run", pattern=RUN_ID)
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
