"""`python -m learner.random_model FOLDER --megabytes N`: a Qwen3 of that size with random weights, for benchmarks.

An ordinary Hugging Face folder, tokenizer included; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import string
from pathlib import Path

from learner.model import PolicyModel
from learner.tiny_model import build_model, build_tokenizer
from shared.config.run import TinyModelConfig

WIDTH, LAYERS = 768, (1, 64)  # hidden size; fewest and most layers


def shape(megabytes: float) -> TinyModelConfig:
    """The configuration whose float32 weights come nearest to so many megabytes (10^6 bytes)."""
    layer = WIDTH * (2 * WIDTH + 2 * 256 + 3 * 3 * WIDTH)  # attention with 4 key-value heads of 64, and the MLP
    layers = round(megabytes * 1e6 / 4 / layer)
    return TinyModelConfig(
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=min(max(layers, LAYERS[0]), LAYERS[1]),
        num_attention_heads=WIDTH // 64,
        num_key_value_heads=4,
        head_dim=64,
        tie_word_embeddings=False,
    )


def write(folder: Path, megabytes: float) -> None:
    """Makes the model in a new folder."""
    tokenizer = build_tokenizer([string.printable], 512)
    model = build_model(shape(megabytes), tokenizer)
    folder.mkdir(parents=True)
    PolicyModel(model, "float32").save(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    """Writes what the arguments ask for."""
    parser = argparse.ArgumentParser(prog="python -m learner.random_model", description="A model of random weights.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--megabytes", type=float, default=300.0)
    options = parser.parse_args()
    write(options.folder, options.megabytes)


if __name__ == "__main__":
    main()
