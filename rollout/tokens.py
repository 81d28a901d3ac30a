"""The model's own tokenizer: prompts by its chat template, and the tokens that end a completion."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from shared.errors import ConfigError
from shared.types import Int32Array

_ENCODING = threading.Lock()  # a fast tokenizer sets its options on itself while it encodes

SAMPLE = "a 1"  # text that every tokenizer has tokens for


def load_tokenizer(model_path: str) -> Any:
    """The tokenizer of a Hugging Face folder or hub name. Raises ConfigError."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model_path)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"model.path {model_path!r}: no tokenizer can be loaded from it: {error}") from error
    # Where config.json names an architecture but no tokenizer file is there, transformers makes an empty one up.
    if not tokenizer.encode(SAMPLE, add_special_tokens=False):
        raise ConfigError(
            f"model.path {model_path!r}: its tokenizer knows no token for {SAMPLE!r}; the folder must hold the model's "
            "tokenizer files (tokenizer.json, tokenizer_config.json)"
        )
    return tokenizer


def stop_token_ids(model_path: str, tokenizer: Any) -> tuple[int, ...]:
    """What ends a completion: the end tokens of the model's generation config and of its tokenizer.

    Raises:
        ConfigError: neither names one, so that no completion would ever end by itself.

    """
    from transformers import GenerationConfig

    try:
        named = GenerationConfig.from_pretrained(model_path).eos_token_id
    except OSError:  # a model folder may come without the file
        named = None
    ids = [named] if isinstance(named, int) else list(named or [])
    if tokenizer.eos_token_id is not None:
        ids.append(tokenizer.eos_token_id)
    if not ids:
        raise ConfigError(
            f"model.path {model_path!r}: neither generation_config.json nor the tokenizer has an eos token"
        )
    return tuple(sorted(set(ids)))


def completion_ids(tokenizer: Any, text: str) -> Int32Array:
    """Token ids [T] of a completion that says this and ends. Raises ConfigError."""
    if tokenizer.eos_token_id is None:
        raise ConfigError("model.path: the tokenizer has no eos token, so an expert's answer would never end")
    with _ENCODING:
        ids = tokenizer.encode(text, add_special_tokens=False)
    return np.asarray([*ids, tokenizer.eos_token_id], dtype=np.int32)


def chat_prompt(
    tokenizer: Any, messages: Sequence[Mapping[str, str]], template_arguments: Mapping[str, Any] | None = None
) -> Int32Array:
    """Token ids [P] of a conversation, up to where the model is to speak. Raises ConfigError."""
    if not tokenizer.chat_template:
        raise ConfigError("model.path: the tokenizer has no chat template, so questions cannot be put to the model")
    with _ENCODING:
        ids = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
            **(template_arguments or {}),
        )
    if not ids:
        raise ConfigError("model.path: the tokenizer's chat template makes an empty prompt of a question")
    return np.asarray(ids, dtype=np.int32)
