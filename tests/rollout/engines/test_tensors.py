from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rollout.engines.base import TensorReport
from rollout.engines.tensors import StoredTensors, pieces, same_bits
from shared.errors import EngineError

EMBEDDING = torch.arange(6.0).reshape(3, 2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file({"model.embed_tokens.weight": EMBEDDING}, tmp_path / "a.safetensors")
    save_file({"model.norm.weight": torch.ones(2)}, tmp_path / "b.safetensors")
    return tmp_path


def test_tensors_are_found_in_whichever_file_they_are(folder: Path) -> None:
    with StoredTensors(folder) as stored:
        found = stored.get("model.norm.weight")
        assert found is not None
        assert found.tolist() == [1, 1]
        assert stored.get("model.norm.bias") is None


def test_an_output_layer_that_is_in_no_file_is_the_embedding(folder: Path) -> None:
    with StoredTensors(folder) as stored:
        tied = stored.get("lm_head.weight")
        assert tied is not None
        assert torch.equal(tied, EMBEDDING)
    save_file({"lm_head.weight": EMBEDDING + 1}, folder / "c.safetensors")
    with StoredTensors(folder) as stored:
        own = stored.get("lm_head.weight")
        assert own is not None
        assert torch.equal(own, EMBEDDING + 1)


def test_a_folder_without_tensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no \\*\\.safetensors file"):
        StoredTensors(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int8])
def test_the_smallest_difference_is_one(dtype: torch.dtype) -> None:
    held = torch.full((3, 5), 7).to(dtype)
    other = held.clone()
    assert same_bits(held, other)
    other[2, 4] = torch.nextafter(other[2, 4], other[2, 4] + 1) if dtype.is_floating_point else 8
    assert not same_bits(held, other)


def test_signs_of_zero_differ_and_nan_is_itself() -> None:
    assert not same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert same_bits(torch.tensor([torch.nan]), torch.tensor([torch.nan]))


def test_published_tensors_are_rounded_to_the_engine_s_precision() -> None:
    published = torch.tensor([1.0, 1.0 + 2**-12, -3.14159])
    held = published.to(torch.bfloat16)
    assert same_bits(held, published)
    assert not same_bits(held, published + 0.01)
    assert not same_bits(held[:2], published), "another shape"


def test_pieces_hold_every_name_once_and_no_more_bytes_than_allowed_unless_alone() -> None:
    sizes = {"a": 3, "b": 4, "c": 9, "d": 1, "e": 1}
    assert list(pieces(sizes, 7)) == [["a", "b"], ["c"], ["d", "e"]]
    assert list(pieces({}, 7)) == []


def test_reports_add_up() -> None:
    both = TensorReport(("a",), ("b",), 1, 10) + TensorReport(("c",), (), 2, 20)
    assert both == TensorReport(("a", "c"), ("b",), 3, 30)
