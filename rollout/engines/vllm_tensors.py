"""Runs inside vLLM's workers: are the weights there, bit by bit, those of a model folder?

    kept        parameter == the rank's part of the file's tensors (fused ones side by side), in the engine's precision
    packed      what a CPU kernel has packed away is read back through the layer itself: one-hot inputs, of which
                each gives one column exactly; up to COLUMNS of them, others for every version
    unchecked   quantized tensors, and names that no file has: only the probe says something of those

Facts, seen with vLLM 0.32: on CPU every linear layer packs its weights and drops the parameter (its `weight` is left
empty); the embedding keeps it, and packs a copy for the output layer. That copy, `cpu_linear` of a tied output layer,
is what a reload leaves behind.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
    UnquantizedLinearMethod,
)
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod, VocabParallelEmbedding

from rollout.engines.base import TensorReport
from rollout.engines.tensors import StoredTensors, pieces, same_bits

COLUMNS = 64  # of a packed matrix that are read back


class TensorCheck:
    """What `collective_rpc("check_tensors_piece")` finds in a worker: vLLM mixes this class into its own."""

    def check_tensors_piece(self, folder: str, piece: int, most_bytes: int) -> tuple[dict[str, Any], int]:
        """Compares one piece of the model with the folder: a report's fields, and how many pieces there are."""
        model: nn.Module = self.get_model()  # type: ignore[attr-defined]  # the worker's own
        held = {tensor.name: tensor for tensor in held_tensors(model)}
        parts = list(pieces({name: tensor.nbytes for name, tensor in held.items()}, most_bytes))
        if piece >= len(parts):
            return {}, len(parts)
        with StoredTensors(Path(folder)) as stored, torch.inference_mode():
            return asdict(compare([held[name] for name in parts[piece]], stored, salt=folder)), len(parts)


@dataclass(frozen=True)
class HeldTensor:
    """A parameter of a layer. `parts`: the names in the files that lie side by side in it."""

    name: str
    layer: nn.Module
    leaf: str  # its name within the layer
    parts: tuple[str, ...]

    @property
    def parameter(self) -> torch.Tensor:
        """What the layer keeps under this name; empty where it was packed away."""
        found: torch.Tensor = getattr(self.layer, self.leaf)
        return found

    @property
    def packed(self) -> bool:
        """True where a CPU kernel computes with a packed copy."""
        return self.leaf == "weight" and hasattr(self.layer, "cpu_linear")

    @property
    def nbytes(self) -> int:
        """Bytes, also of what was packed away."""
        sizes = [getattr(self.layer, f"{side}_size_per_partition", 0) for side in ("input", "output")]
        return max(self.parameter.nbytes, sizes[0] * sizes[1] * self.parameter.element_size() if self.packed else 0)


def held_tensors(model: nn.Module) -> Iterator[HeldTensor]:
    """Every parameter of every layer; one that two layers share is named twice."""
    fused: dict[str, list[str]] = getattr(model, "packed_modules_mapping", None) or {}
    for path, layer in model.named_modules():
        above, _, own = path.rpartition(".")
        for leaf, _ in layer.named_parameters(recurse=False):
            parts = tuple(".".join(filter(None, (above, part, leaf))) for part in fused.get(own, [own]))
            yield HeldTensor(f"{path}.{leaf}", layer, leaf, parts)


def compare(held: list[HeldTensor], stored: StoredTensors, salt: str) -> TensorReport:
    """Compares layers' parameters with the files'; `salt` chooses the columns of packed ones."""
    wrong, unchecked, size = [], [], 0
    for tensor in held:
        expected = _expected(tensor, stored)
        if expected is None:
            unchecked.append(tensor.name)
            continue
        size += tensor.nbytes
        if not _is_same(tensor, expected, salt):
            wrong.append(tensor.name)
    return TensorReport(tuple(wrong), tuple(unchecked), len(held) - len(wrong) - len(unchecked), size)


def _expected(tensor: HeldTensor, stored: StoredTensors) -> torch.Tensor | None:
    """This rank's part of the files' tensors, as the layer has it; None where it cannot be compared."""
    method = getattr(tensor.layer, "quant_method", None)
    if method is not None and not isinstance(method, UnquantizedLinearMethod | UnquantizedEmbeddingMethod):
        return None
    found = [stored.get(name) for name in tensor.parts]
    whole = [part for part in found if part is not None]
    if len(whole) != len(found):
        return None
    return torch.cat([_of_rank(tensor, i, part) for i, part in enumerate(whole)])


def _of_rank(tensor: HeldTensor, part: int, whole: torch.Tensor) -> torch.Tensor:
    """The slice of a file's tensor that tensor parallelism gives to this rank."""
    layer: Any = tensor.layer
    if isinstance(layer, VocabParallelEmbedding):
        indices = layer.shard_indices
        return whole[indices.org_vocab_start_index : indices.org_vocab_end_index]
    rank, ranks = getattr(layer, "tp_rank", 0), getattr(layer, "tp_size", 1)
    if isinstance(layer, QKVParallelLinear) and part > 0:  # few heads of keys and values are shared by ranks
        rank, ranks = rank // layer.num_kv_head_replicas, ranks // layer.num_kv_head_replicas
    if isinstance(layer, ColumnParallelLinear):
        return whole.chunk(ranks, dim=0)[rank]
    if isinstance(layer, RowParallelLinear) and whole.ndim == 2:
        return whole.chunk(ranks, dim=1)[rank]
    return whole


def _is_same(tensor: HeldTensor, expected: torch.Tensor, salt: str) -> bool:
    kept = tensor.parameter
    if isinstance(tensor.layer, VocabParallelEmbedding) and kept.ndim and len(kept):
        kept = kept[: len(expected)]  # the rest is padding
    if not tensor.packed:
        return same_bits(kept, expected)
    if kept.numel() and not same_bits(kept, expected):
        return False
    return _columns_are_same(tensor, expected.to(kept.dtype), salt)


def _columns_are_same(tensor: HeldTensor, expected: torch.Tensor, salt: str) -> bool:
    """A one-hot input picks a column: its products are the weights themselves and zeros, exact in any precision."""
    width = expected.shape[1]
    chosen = torch.randperm(width, generator=torch.Generator().manual_seed(zlib.crc32(salt.encode())))[:COLUMNS]
    inputs = torch.zeros(len(chosen), width, dtype=expected.dtype)
    inputs[torch.arange(len(chosen)), chosen] = 1.0
    layer: Any = tensor.layer
    columns = layer.quant_method.apply(layer, inputs, None)[:, : len(expected)]
    return torch.equal(columns, expected[:, chosen].T)
