from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from rollout.tokens import chat_prompt, completion_ids, load_tokenizer, stop_token_ids
from shared.errors import ConfigError
from tests.rollout.models import byte_tokenizer


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no tokenizer can be loaded from it"):
        load_tokenizer(str(tmp_path))


def test_a_model_whose_tokenizer_files_are_missing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}))
    with pytest.raises(ConfigError, match=r"model\.path .*knows no token for 'a 1'.*tokenizer\.json"):
        load_tokenizer(str(tmp_path))


def test_a_question_that_encodes_to_nothing_is_refused() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{# nothing #}"
    with pytest.raises(ConfigError, match=r"model\.path: .*empty prompt"):
        chat_prompt(tokenizer, [{"role": "user", "content": "?"}])


def test_completions_end_at_every_end_token_of_model_and_tokenizer(tiny_model: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    tokenizer = load_tokenizer(str(model))
    end = tokenizer.eos_token_id
    assert stop_token_ids(str(model), tokenizer) == (end,)
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, end], "top_p": 0.5}))
    assert stop_token_ids(str(model), tokenizer) == (3, end)
    (model / "generation_config.json").unlink()
    assert stop_token_ids(str(model), tokenizer) == (end,)


def test_a_model_that_names_no_end_is_refused(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="has an eos token"):
        stop_token_ids(str(tmp_path), tokenizer)
    with pytest.raises(ConfigError, match="has no eos token"):
        completion_ids(tokenizer, "42")


def test_a_tokenizer_without_a_chat_template_is_refused() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="no chat template"):
        chat_prompt(tokenizer, [{"role": "user", "content": "?"}])
