"""One chunk of a patch: which elements changed and by how much, as few bytes, and back.

    payload = kind, then
              SAME    nothing
              SPARSE  number of changed elements, gaps between them, planes of their differences less 1
              DENSE   planes of the differences of all elements

A difference is `new - old` of the elements as whole numbers, modulo their width, with the sign in its lowest bit, so
that a weight's usual change by one unit in the last place is a 1 or a 2, whatever the type (XOR would spread it over
1, 3, 7, 15, ...). Differences are split into planes, byte 0 of all of them, then byte 1. Gaps and planes are Huffman
coded (deflate with runs of one byte only: there is nothing else to find), or stored where that does not help.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

Elements = NDArray[Any]  # unsigned whole numbers, little-endian

DENSE_SHARE = 0.5  # of changed elements, from which naming them costs more than going through all

_COUNT = struct.Struct("<I")
_PLANE = struct.Struct("<BII")  # how it is coded, bytes before and after
_SAME, _SPARSE, _DENSE = range(3)
_STORED, _DEFLATED = range(2)
_ESCAPE = 255  # so many elements without a change, and no change after them


def encode_chunk(old: Elements, new: Elements) -> bytes:
    """The payload that makes `new` out of `old`: as many elements of one width."""
    changed = old != new
    count = np.count_nonzero(changed)
    if count == 0:
        return bytes([_SAME])
    if count > DENSE_SHARE * len(old):
        return bytes([_DENSE]) + _coded_planes(_signs_last(new - old))
    where = np.flatnonzero(changed)
    return b"".join(
        (
            bytes([_SPARSE]),
            _COUNT.pack(count),
            _coded_plane(_gaps(where)),
            _coded_planes(_signs_last(new[where] - old[where]) - 1),
        )
    )


def apply_chunk(old: Elements, payload: memoryview, new: Elements) -> None:
    """Writes what the payload makes of `old` into `new`.

    Raises:
        ValueError, struct.error, zlib.error: this is no payload for so many elements.

    """
    kind, rest = bytes(payload[:1]), payload[1:]
    if kind == bytes([_SAME]):
        np.copyto(new, old)
    elif kind == bytes([_DENSE]):
        differences, rest = _planes(rest, len(old), old.dtype)
        np.add(old, _signs_first(differences), out=new)
    elif kind == bytes([_SPARSE]):
        [count] = _COUNT.unpack_from(rest)
        gaps, rest = _plane(rest[_COUNT.size :], len(old))
        where = _places(gaps, count, len(old))
        differences, rest = _planes(rest, count, old.dtype)
        np.copyto(new, old)
        new[where] += _signs_first(differences + 1)
    else:
        raise ValueError("it has a chunk of unknown kind")
    if len(rest):
        raise ValueError("a chunk has bytes left over")


def _gaps(where: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Unchanged elements before each changed one; every _ESCAPE of them are a byte of their own."""
    gaps = np.diff(where, prepend=-1) - 1
    if gaps.max() < _ESCAPE:
        return gaps.astype(np.uint8)
    escapes, last = np.divmod(gaps, _ESCAPE)
    ends = np.cumsum(escapes + 1)
    coded = np.full(int(ends[-1]), _ESCAPE, dtype=np.uint8)
    coded[ends - 1] = last
    return coded


def _places(gaps: NDArray[np.uint8], count: int, size: int) -> NDArray[np.int64]:
    """The inverse of `_gaps`: ascending places of `count` elements of `size`. Raises ValueError."""
    steps = np.minimum(gaps.astype(np.int64) + 1, _ESCAPE)
    places: NDArray[np.int64] = (np.cumsum(steps) - 1)[gaps != _ESCAPE]
    if len(places) != count or (count and places[-1] >= size):
        raise ValueError("a chunk names elements that are not there")
    return places


def _signs_last(differences: Elements) -> Elements:
    """0, -1, 1, -2, 2, ... modulo the width to 0, 1, 2, 3, 4, ..."""
    signed = differences.view(differences.dtype.str.replace("u", "i"))
    coded: Elements = (differences << 1) ^ (signed >> (8 * signed.itemsize - 1)).view(differences.dtype)
    return coded


def _signs_first(coded: Elements) -> Elements:
    """The inverse of `_signs_last`."""
    differences: Elements = (coded >> 1) ^ (0 - (coded & 1))
    return differences


def _coded_planes(values: Elements) -> bytes:
    columns = values.view(np.uint8).reshape(-1, values.itemsize)
    return b"".join(_coded_plane(np.ascontiguousarray(columns[:, i])) for i in range(values.itemsize))


def _planes(coded: memoryview, count: int, dtype: np.dtype[Any]) -> tuple[Elements, memoryview]:
    """`count` values, and what follows them."""
    columns = np.empty((count, dtype.itemsize), dtype=np.uint8)
    for i in range(dtype.itemsize):
        plane, coded = _plane(coded, count)
        if len(plane) != count:
            raise ValueError("a chunk has a plane of another length")
        columns[:, i] = plane
    return columns.reshape(-1).view(dtype), coded


def _coded_plane(plane: NDArray[np.uint8]) -> bytes:
    deflate = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
    short = deflate.compress(plane.data) + deflate.flush()
    if len(short) < len(plane):
        return _PLANE.pack(_DEFLATED, len(plane), len(short)) + short
    return _PLANE.pack(_STORED, len(plane), len(plane)) + plane.tobytes()


def _plane(coded: memoryview, most: int) -> tuple[NDArray[np.uint8], memoryview]:
    """A plane of at most so many bytes, and what follows it."""
    how, size, length = _PLANE.unpack_from(coded)
    stored, rest = coded[_PLANE.size : _PLANE.size + length], coded[_PLANE.size + length :]
    if size > most or len(stored) < length or how not in (_STORED, _DEFLATED):
        raise ValueError("a chunk has a plane that cannot be one")
    if how == _DEFLATED:
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        plane = np.frombuffer(inflate.decompress(stored, size + 1), dtype=np.uint8)
        if not inflate.eof or inflate.unused_data:
            raise ValueError("a chunk has a plane of another length")
    else:
        plane = np.frombuffer(stored, dtype=np.uint8)
    if len(plane) != size:
        raise ValueError("a chunk has a plane of another length")
    return plane, rest
