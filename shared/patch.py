"""Lossless patches between two equally long byte buffers: which elements changed, and by how much.

    patch   = header, table, one payload per chunk of the buffers
    header  = magic, format, element width, chunk bytes, buffer bytes, checksum of the header so far and the table
    table   = per chunk: payload bytes, checksum of the payload, checksum of the chunk that must result
    payload = see `shared.differences`

What is lossless does not depend on what the bytes mean: NaNs keep their payload, -0.0 its sign. Chunks are
independent, so memory stays bounded and threads share the work (numpy, zlib and xxhash leave the interpreter's lock).
Checksums are XXH3 (64 bits): a fifteenth of CRC-32's time, which would be half of what applying a patch takes.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from xxhash import xxh3_64_intdigest as checksum

from shared.differences import Elements, apply_chunk, encode_chunk
from shared.errors import StoreError

MAGIC = b"tbpatch\0"
FORMAT = 1
CHUNK = 2**20  # bytes
LARGEST_CHUNK = 2**22  # bytes that a reader accepts: it may need 32 times as many to undo one

_HEADER = struct.Struct("<8sHHIQ")
_SUM = struct.Struct("<Q")
_ROW = struct.Struct("<IQQ")
_WHOLE: dict[int, np.dtype[Any]] = {1: np.dtype("u1"), 2: np.dtype("<u2"), 4: np.dtype("<u4"), 8: np.dtype("<u8")}

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class _Row:
    """What the table says of a chunk."""

    payload: memoryview
    payload_sum: int
    result_sum: int


def encode(old: memoryview, new: memoryview, width: int, threads: int = 1) -> bytes:
    """The patch that makes `new` out of `old`.

    Args:
        old: contiguous bytes that the reader has.
        new: as many contiguous bytes.
        width: bytes of an element, 1, 2, 4 or 8: what is compared and counted in; at the end fewer may be left over.
        threads: that share the chunks.

    Raises:
        StoreError: the buffers differ in length, or the width is none of these.

    """
    before, after = memoryview(old).cast("B"), memoryview(new).cast("B")
    if len(before) != len(after):
        raise StoreError(f"no patch leads from {len(before):,} bytes to {len(after):,}: publish the version whole")
    if width not in _WHOLE:
        raise StoreError(f"{width} is no element width of a patch: it is one of {sorted(_WHOLE)}")

    def one(piece: tuple[slice, int]) -> tuple[bytes, bytes]:
        where, size = piece
        payload = encode_chunk(_elements(before[where], size), _elements(after[where], size))
        return payload, _ROW.pack(len(payload), checksum(payload), checksum(after[where]))

    coded = _each(one, list(_pieces(len(after), width, CHUNK)), threads)
    head = _HEADER.pack(MAGIC, FORMAT, width, CHUNK, len(after))
    table = b"".join(row for _, row in coded)
    return b"".join((head, _SUM.pack(checksum(head + table)), table, *(payload for payload, _ in coded)))


def apply(old: memoryview, patch: memoryview, out: memoryview, threads: int = 1) -> None:
    """Writes what the patch makes of `old` into `out`, which is as long.

    Raises:
        StoreError: the patch is torn, altered or no patch, or not one against `old`; `out` then holds nothing of use.

    """
    before, after = memoryview(old).cast("B"), memoryview(out).cast("B")
    width, chunk, rows = _read(memoryview(patch).cast("B"), len(before), len(after))

    def one(piece: tuple[tuple[slice, int], _Row]) -> None:
        (where, size), row = piece
        if checksum(row.payload) != row.payload_sum:
            raise StoreError(f"the patch was altered: its checksum at byte {where.start:,} does not match")
        try:
            apply_chunk(_elements(before[where], size), row.payload, _elements(after[where], size))
        except (ValueError, struct.error, zlib.error) as error:
            raise StoreError(f"the patch is damaged at byte {where.start:,}: {error}") from None
        if checksum(after[where]) != row.result_sum:
            raise StoreError(f"the patch was made against other bytes than these: they differ after {where.start:,}")

    _each(one, list(zip(_pieces(len(after), width, chunk), rows, strict=True)), threads)


def _read(patch: memoryview, old_size: int, out_size: int) -> tuple[int, int, list[_Row]]:
    """Element width, chunk bytes and table, all of them within bounds; nothing is allocated for what is declared."""
    start = _HEADER.size + _SUM.size
    if len(patch) < start:
        raise StoreError("the patch is torn: it ends within its header")
    magic, number, width, chunk, size = _HEADER.unpack_from(patch)
    if magic != MAGIC:
        raise StoreError("this is no patch: it begins with other bytes")
    if number != FORMAT:
        raise StoreError(f"the patch has format {number}, this reader knows {FORMAT}: upgrade the older side")
    if width not in _WHOLE or not 0 < chunk <= LARGEST_CHUNK or chunk % width:
        raise StoreError("the patch is damaged: its element width or chunk size cannot be one")
    if not size == old_size == out_size:
        raise StoreError(f"the patch is of {size:,} bytes, not of {old_size:,} into {out_size:,}")
    end = start + _ROW.size * (-(-(size // width * width) // chunk) + (size % width > 0))
    [expected] = _SUM.unpack_from(patch, _HEADER.size)
    if len(patch) < end or checksum(bytes(patch[: _HEADER.size]) + bytes(patch[start:end])) != expected:
        raise StoreError("the patch is torn or altered: the checksum of its table does not match")
    rows = []
    for length, payload_sum, result_sum in _ROW.iter_unpack(patch[start:end]):
        rows.append(_Row(patch[end : end + length], payload_sum, result_sum))
        end += length
    if end != len(patch):
        raise StoreError(f"the patch is torn: it has {len(patch):,} bytes and should have {end:,}")
    return width, chunk, rows


def _pieces(size: int, width: int, chunk: int) -> Iterator[tuple[slice, int]]:
    """Where the chunks are, and the width of their elements: 1 in what is left over at the end."""
    whole = size - size % width
    for start in range(0, whole, chunk):
        yield slice(start, min(start + chunk, whole)), width
    if whole < size:
        yield slice(whole, size), 1


def _each(work: Callable[[T], R], items: list[T], threads: int) -> list[R]:
    if threads <= 1 or len(items) <= 1:
        return [work(item) for item in items]
    with ThreadPoolExecutor(min(threads, len(items))) as pool:
        return list(pool.map(work, items))


def _elements(buffer: memoryview, width: int) -> Elements:
    return np.frombuffer(buffer, dtype=_WHOLE[width])
