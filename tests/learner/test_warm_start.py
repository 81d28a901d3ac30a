"""The small model that the project makes itself."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from learner.tiny_model import build_tokenizer
from learner.warm_start import make_model, read_examples, save
from shared.config.run import TinyModelConfig
from shared.errors import ConfigError

TINY = TinyModelConfig(
    hidden_size=32,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=1,
    num_key_value_heads=1,
    warm_start_steps=60,
    warm_start_accuracy=0.01,
    warm_start_pool=32,
)


def rows(count: int = 300) -> list[dict[str, object]]:
    """Copying a digit: learned in a few steps."""
    return [
        {"messages": [{"role": "user", "content": f"Say the digit {i % 10}."}], "answer": str(i % 10)}
        for i in range(count)
    ]


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_the_same_settings_give_the_same_files(tmp_path: Path) -> None:
    for name in ("first", "second"):
        tokenizer, model = make_model(TINY, rows(), lambda line: None)
        save(model, tokenizer, tmp_path / name)
    assert digests(tmp_path / "first") == digests(tmp_path / "second")
    tokenizer, model = make_model(TINY.model_copy(update={"seed": 1}), rows(), lambda line: None)
    save(model, tokenizer, tmp_path / "other")
    assert digests(tmp_path / "other")["model.safetensors"] != digests(tmp_path / "first")["model.safetensors"]


def test_the_folder_is_an_ordinary_one_with_qwens_keys(tmp_path: Path) -> None:
    tokenizer, model = make_model(TINY, rows(), lambda line: None)
    save(model, tokenizer, tmp_path / "model")
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json", "model.safetensors"} <= names
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["tie_word_embeddings"] is True
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    reread: Any = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert loaded.config.vocab_size == len(reread)
    prompt = reread.apply_chat_template(
        [{"role": "user", "content": "Say the digit 7."}], add_generation_prompt=True, return_dict=False
    )
    assert "<|assistant|>" in reread.convert_ids_to_tokens(prompt)[-1]
    assert reread.eos_token_id == config["eos_token_id"]


def test_any_text_survives_the_tokenizer_and_digits_stand_alone() -> None:
    tokenizer = build_tokenizer([row["messages"][-1]["content"] for row in rows()], 512)  # type: ignore[index]
    for text in ("1234 + 5678 = ?", "naïve café 你好 🎲\n\ttabs", "Say the digit 7."):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
    assert len(tokenizer("1234", add_special_tokens=False)["input_ids"]) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "0 solved questions; more than 256"),
        ('{"question": "1 + 1"}\n', "not a file of solved questions"),
        ("not json\n", "not a file of solved questions"),
    ],
)
def test_examples_that_are_none_are_refused_by_file(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "examples.jsonl"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_examples(file)
