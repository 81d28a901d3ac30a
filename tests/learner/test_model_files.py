"""The files of a version, against those that transformers and safetensors write themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from learner.model_files import ModelFiles
from learner.weight_file import PIECE, WEIGHTS, layout_of, write_new
from shared.checksums import Checksum

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def model(name: str) -> Any:
    torch.manual_seed(0)
    if name == "llama, untied":
        return LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False))
    if name == "gpt2, other names and layouts":
        return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=32))
    if name == "mixtral, experts fused in memory":
        return MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=4))
    experts: dict[str, Any] = {"num_experts": 4, "moe_intermediate_size": 8, "head_dim": 8, "tie_word_embeddings": True}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, **experts))


@pytest.mark.parametrize(
    "name",
    ["llama, untied", "gpt2, other names and layouts", "mixtral, experts fused in memory", "qwen3 moe, fused and tied"],
)
def test_every_architecture_is_saved_as_transformers_itself_saves_it(name: str, tmp_path: Path) -> None:
    module = model(name)
    ModelFiles(module, torch.float32).save(tmp_path / "ours")
    module.save_pretrained(tmp_path / "theirs")
    ours, theirs = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    for file in ours:
        assert ours[file] == theirs[file], file
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    for (wanted, value), found in zip(module.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(value, found), wanted


def test_weights_that_moved_are_in_the_next_file_and_rounded_as_torch_rounds(tmp_path: Path) -> None:
    module = model("llama, untied")
    files = ModelFiles(module, torch.bfloat16)
    first = files.save(tmp_path / "first")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter))
    assert files.save(tmp_path / "second") != first
    found = load_file(tmp_path / "second" / WEIGHTS)
    assert found.keys() == module.state_dict().keys()
    for name, tensor in module.state_dict().items():
        assert torch.equal(found[name], tensor.to(torch.bfloat16)), name


def some_tensors() -> dict[str, torch.Tensor]:
    """Every kind: several pieces long, empty, of one number, not contiguous, integers and truths."""
    torch.manual_seed(1)
    return {
        "long": torch.randn(3, PIECE // 4),
        "a.turned": torch.randn(7, 5).T,
        "empty": torch.zeros(0, 3),
        "one": torch.tensor(3.5),
        "count": torch.arange(5),
        "mask": torch.tensor([True, False, True]),
        'quoted "name" é': torch.ones(2, dtype=torch.float64),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_any_tensors_are_written_as_safetensors_writes_them(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = some_tensors()
    layout = layout_of(tensors, dtype)
    written = write_new(tmp_path / "ours", layout.size, layout.pieces(tensors))
    published = {k: (t.to(dtype) if t.is_floating_point() else t).contiguous() for k, t in tensors.items()}
    save_file(published, tmp_path / "theirs", metadata={"format": "pt"})
    ours = (tmp_path / "ours").read_bytes()
    found = load_file(tmp_path / "ours")
    assert {name: (t.dtype, t.shape) for name, t in found.items()} == {
        name: (t.dtype, t.shape) for name, t in published.items()
    }
    assert all(torch.equal(found[name], tensor) for name, tensor in published.items())
    assert len(ours) == (tmp_path / "theirs").stat().st_size
    checksum = Checksum()
    checksum.update(ours)
    assert written == checksum.text
    assert layout.width == dtype.itemsize


def test_the_file_in_memory_is_the_file_on_the_disk(tmp_path: Path) -> None:
    tensors = some_tensors()
    layout = layout_of(tensors, torch.bfloat16)
    memory = bytearray(b"\xa5" * layout.size)
    pieces = [bytes(piece) for piece in layout.pieces(tensors, memoryview(memory))]
    write_new(tmp_path / "file", layout.size, layout.pieces(tensors))
    assert bytes(memory) == b"".join(pieces) == (tmp_path / "file").read_bytes()
    assert max(map(len, pieces)) <= PIECE


def test_an_existing_file_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        write_new(tmp_path / "file", 4, iter([memoryview(b"else")]))
    assert (tmp_path / "file").read_bytes() == b"mine"
