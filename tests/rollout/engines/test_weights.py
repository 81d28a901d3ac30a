import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from rollout.engines.weights import INDEX_FILE, ServedWeights, is_tied, list_tensors, write_untied_copy
from shared.errors import EngineError
from tests.rollout.engines.models import build_model, random_tokens, reference_logprobs


@pytest.fixture
def tied(tmp_path: Path) -> Path:
    build_model(tie=True).save_pretrained(tmp_path / "tied")
    return tmp_path / "tied"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_untied_copy_has_the_embedding_as_its_output_layer_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    build_model(tie=True).to(dtype).save_pretrained(tmp_path / "tied")
    write_untied_copy(tmp_path / "tied", tmp_path / "copy")
    copy = AutoModelForCausalLM.from_pretrained(tmp_path / "copy", dtype=dtype)
    assert not copy.config.tie_word_embeddings
    assert copy.lm_head.weight.data_ptr() != copy.model.embed_tokens.weight.data_ptr()
    assert torch.equal(copy.lm_head.weight, copy.model.embed_tokens.weight)


def test_an_untied_copy_of_a_sharded_model_computes_the_same(tmp_path: Path) -> None:
    build_model(tie=True).save_pretrained(tmp_path / "tied", max_shard_size="500KB")
    assert (tmp_path / "tied" / INDEX_FILE).exists()
    write_untied_copy(tmp_path / "tied", tmp_path / "copy")
    tokens = random_tokens(20, seed=0)
    expected = reference_logprobs(tmp_path / "tied", tokens)
    assert len(list((tmp_path / "copy").glob("body-*"))) > 1
    np.testing.assert_allclose(reference_logprobs(tmp_path / "copy", tokens), expected, atol=1e-6)


def test_only_the_output_layer_is_written_the_rest_is_linked(tmp_path: Path, tied: Path) -> None:
    write_untied_copy(tied, tmp_path / "copy")
    assert (tmp_path / "copy" / "body-model.safetensors").is_symlink()
    assert list_tensors(tmp_path / "copy").keys() - list_tensors(tied).keys() == {"lm_head.weight"}


def test_tying_is_read_from_the_config_and_else_from_the_tensors(tmp_path: Path, tied: Path) -> None:
    build_model(tie=False).save_pretrained(tmp_path / "untied")
    assert is_tied(tied)
    assert not is_tied(tmp_path / "untied")
    config = json.loads((tied / "config.json").read_text())
    del config["tie_word_embeddings"]
    (tied / "config.json").write_text(json.dumps(config))
    assert is_tied(tied)


def test_a_tied_model_that_stores_another_output_layer_is_refused(tmp_path: Path, tied: Path) -> None:
    tensors = load_file(tied / "model.safetensors")
    same = {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    save_file(same, tied / "model.safetensors")
    write_untied_copy(tied, tmp_path / "copy")
    save_file({**same, "lm_head.weight": same["lm_head.weight"] + 1}, tied / "model.safetensors")
    with pytest.raises(EngineError, match=r"ties lm_head\.weight to the embedding"):
        write_untied_copy(tied, tmp_path / "other")


@pytest.mark.parametrize("damage", ["cut", "header", "empty", "gone"])
def test_a_torn_weight_file_is_refused(tied: Path, damage: str) -> None:
    file = tied / "model.safetensors"
    data = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes({"cut": data[:-1], "header": data[:8] + b"x" + data[9:], "empty": b""}[damage])
    with pytest.raises(EngineError, match=r"safetensors"):
        list_tensors(tied)


def test_weights_that_replace_only_a_part_are_refused_by_name(tmp_path: Path, tied: Path) -> None:
    served = ServedWeights(tied, tmp_path / "copies", untie=True)
    tensors = load_file(tied / "model.safetensors")
    lacking = {name: t for name, t in tensors.items() if name != "model.norm.weight"}
    save_file(lacking, tied / "model.safetensors")
    with pytest.raises(EngineError, match=r"missing: model\.norm\.weight"):
        served.prepare(tied)
    save_file({**tensors, "model.norm.weight": torch.zeros(7)}, tied / "model.safetensors")
    with pytest.raises(EngineError, match=r"of another shape: model\.norm\.weight"):
        served.prepare(tied)


def test_only_the_copy_being_served_is_kept(tmp_path: Path, tied: Path) -> None:
    served = ServedWeights(tied, tmp_path / "copies", untie=True)
    for _ in range(3):
        served.loaded(served.prepare(tied))
    assert len(list((tmp_path / "copies").iterdir())) == 1
    assert (tied / "model.safetensors").exists()


def test_a_folder_is_served_as_it_is_where_untying_is_not_needed(tmp_path: Path, tied: Path) -> None:
    assert ServedWeights(tied, tmp_path / "copies", untie=False).prepare(tied) == tied
    build_model(tie=False).save_pretrained(tmp_path / "untied")
    untied = tmp_path / "untied"
    assert ServedWeights(untied, tmp_path / "copies", untie=True).prepare(untied) == untied
