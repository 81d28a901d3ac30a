"""The table of a version's tensors: name, dtype, shape and checksum of each, as a small file of the version.

Whoever gets the tensors over the wire allocates by it and compares with it. It says nothing of files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

from shared.errors import StoreError
from shared.manifest import Manifest, StoredFile

TABLE = "tensors.json"
DTYPES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "uint8": 1, "bool": 1}
MAX_TABLE_BYTES = 32 * 2**20
MAX_TENSORS = 200_000
MAX_TENSOR_BYTES = 2**40
_LONGEST_NAME = 512
_WEIGHTS = ".safetensors"


@dataclass(frozen=True)
class TensorRow:
    """One tensor, as it goes over the wire."""

    name: str
    dtype: str  # torch's name of it
    shape: tuple[int, ...]
    checksum: int  # of its bytes, 64 bits


def weight_files(manifest: Manifest) -> list[StoredFile]:
    """A version's files that hold tensors."""
    return [file for file in manifest.files if file.name.endswith(_WEIGHTS)]


def has_weights(manifest: Manifest) -> bool:
    """True where a version's weights are in files; a version that went over the wire alone has none."""
    return bool(weight_files(manifest))


def write_table(folder: Path, rows: Iterable[TensorRow]) -> None:
    """Writes the table into a version's folder. Raises StoreError."""
    try:
        (folder / TABLE).write_text(json.dumps([asdict(row) for row in rows]))
    except OSError as error:
        raise StoreError(f"cannot write {folder / TABLE}: {error}") from error


def read_table(folder: Path) -> list[TensorRow]:
    """The table, every row looked at. Raises StoreError."""
    path = folder / TABLE
    try:
        if path.stat().st_size > MAX_TABLE_BYTES:
            raise StoreError(f"{path} has more than {MAX_TABLE_BYTES:,} bytes")
        rows = json.loads(path.read_bytes())
        if not isinstance(rows, list) or not 0 < len(rows) <= MAX_TENSORS:
            raise ValueError("it is no list of tensors")
        table = [_row(row) for row in rows]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(f"{path} is no table of tensors: {str(error)[:200]}") from None
    if len({row.name for row in table}) != len(table):
        raise StoreError(f"{path} names a tensor twice")
    return table


def _row(item: Any) -> TensorRow:
    name, dtype, shape, checksum = (item[key] for key in ("name", "dtype", "shape", "checksum"))
    if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_NAME or dtype not in DTYPES:
        raise ValueError("a tensor has no name or no dtype")
    if not isinstance(shape, list) or len(shape) > 16 or not all(_is_count(size) for size in shape):
        raise ValueError(f"the shape of {name} cannot be one")
    if not _is_count(checksum) or bytes_of(shape, dtype) > MAX_TENSOR_BYTES:
        raise ValueError(f"size or checksum of {name} cannot be one")
    return TensorRow(name, dtype, tuple(shape), checksum)


def bytes_of(shape: Sequence[int], dtype: str) -> int:
    """Bytes of a tensor."""
    return prod(shape) * DTYPES[dtype]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**64
