"""Tiny Qwen3 models on disk, and transformers' own log-probs of them to compare with."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from shared.types import Float32Array, Int32Array

VOCAB = 512


def build_model(*, tie: bool, seed: int = 0, spread: float = 0.08) -> Any:
    """A random Qwen3 of half a million parameters; a larger spread makes it surer of its tokens."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=tie,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        initializer_range=spread,
    )
    model: Any = Qwen3ForCausalLM
    return model(config).float().eval()


def save_versions(root: Path, count: int, *, tie: bool, noise: float = 0.01) -> list[Path]:
    """`count` versions of one model, each a random step away from the one before."""
    model = build_model(tie=tie)
    folders = []
    for version in range(count):
        folders.append(root / f"{'tied' if tie else 'untied'}-{version}")
        model.save_pretrained(folders[-1])
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=noise)
    return folders


@torch.no_grad()
def reference_logprobs(folder: Path, token_ids: Int32Array, temperature: float = 1.0) -> Float32Array:
    """log_softmax(logits / temperature) of tokens 1..T-1, [T-1], by transformers in float32."""
    model = _model(folder)
    ids = torch.from_numpy(token_ids.astype(np.int64))[None]
    logits = model(ids).logits[0, :-1] / temperature
    found: Float32Array = logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0].numpy()
    return found


@lru_cache(maxsize=4)
def _model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype="float32")


def random_tokens(length: int, seed: int) -> Int32Array:
    """Token ids that stop nothing."""
    return np.random.default_rng(seed).integers(2, VOCAB, length, dtype=np.int32)
