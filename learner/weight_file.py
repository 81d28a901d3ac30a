"""The safetensors file of a version, written without a copy of the model beside it.

    8 bytes: length of the header | header: JSON, padded with spaces | tensors, one after another

As `safetensors` writes it, byte for byte, in one pass: a piece is converted to the published precision, and its
checksum taken and the file written while it is still in the processor's cache.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared.checksums import Checksum

WEIGHTS = "model.safetensors"
PIECE = 2**21  # bytes that are converted at once
UNSHARED = 2**15  # elements; torch uses its threads for more
ALIGNED = 8  # bytes; what the header is padded to

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class Layout:
    """Where everything is in the file; the same for every version of a model."""

    header: bytes  # with its length before it
    dtypes: Mapping[str, torch.dtype]  # of every tensor, in the file's order
    size: int  # bytes of the whole file

    @property
    def width(self) -> int:
        """Bytes of the element that most of the file consists of."""
        widths = [dtype.itemsize for dtype in self.dtypes.values()]
        return max(set(widths), key=widths.count, default=1)

    def pieces(self, tensors: Mapping[str, Tensor], memory: memoryview | None = None) -> Iterator[memoryview]:
        """The file's bytes in their order; each piece is good until the next one is asked for.

        Args:
            tensors: every tensor of the layout, in any precision, on any device.
            memory: as many bytes as the file, which then hold it and of which the pieces are views.

        """
        yield _put(self.header, memory)
        end = len(self.header)
        scratch = memoryview(bytearray(PIECE))
        for name, dtype in self.dtypes.items():
            for values in tensors[name].detach().reshape(-1).split(PIECE // dtype.itemsize):
                if values.numel():
                    start, end = end, end + values.numel() * dtype.itemsize
                    piece = memory[start:end] if memory is not None else scratch[: end - start]
                    _convert(values, torch.frombuffer(piece, dtype=dtype))
                    yield piece


def layout_of(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Layout:
    """The file's layout where floating-point tensors are published as `dtype`. Wider types first, then by name."""
    dtypes = {name: dtype if tensor.is_floating_point() else tensor.dtype for name, tensor in tensors.items()}
    dtypes = dict(sorted(dtypes.items(), key=lambda item: (-item[1].itemsize, _NAMES[item[1]], item[0])))
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, kind in dtypes.items():
        start, end = end, end + tensors[name].numel() * kind.itemsize
        entries[name] = {"dtype": _NAMES[kind], "shape": list(tensors[name].shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNED)
    header = struct.pack("<Q", len(text)) + text
    return Layout(header, dtypes, len(header) + end)


def write_new(path: Path, size: int, pieces: Iterator[memoryview]) -> str:
    """Writes a file of this size; its room on the disk is taken before. Returns its checksum. Raises OSError."""
    checksum = Checksum()
    with path.open("xb", buffering=0) as file:
        if size:
            os.posix_fallocate(file.fileno(), 0, size)
        for whole in pieces:
            for start in range(0, len(whole), PIECE):
                piece = whole[start : start + PIECE]
                checksum.update(piece)
                _write_all(file.fileno(), piece)
    return checksum.text


def _convert(values: Tensor, into: Tensor) -> None:
    """In blocks that torch does not share out: its threads would wait for each other at every piece."""
    if not values.is_cpu:
        into.copy_(values.to(into.dtype))
        return
    for target, source in zip(into.split(UNSHARED), values.split(UNSHARED), strict=True):
        target.copy_(source)


def _put(data: bytes, memory: memoryview | None) -> memoryview:
    if memory is None:
        return memoryview(data)
    memory[: len(data)] = data
    return memory[: len(data)]


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
