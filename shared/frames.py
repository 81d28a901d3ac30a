"""What a msgpack frame would make its reader allocate, found by walking its headers alone.

A frame of 256 MiB can declare lists of 2^32 items, or hold 10^8 empty ones that take 64 bytes each once they are
Python objects. Nothing is unpacked before this walk has said that every declared length is really there and that the
objects are few.
"""

from __future__ import annotations

from shared.errors import DecodeError, SizeLimitError

_FLAT = [-1] * 256  # first byte -> bytes of the whole object, -1 where a length field tells
_FLAT[0x00:0x80] = [1] * 128  # small integers
_FLAT[0xE0:0x100] = [1] * 32
_FLAT[0xA0:0xC0] = range(1, 33)  # short texts
for _first, _size in {0xC0: 1, 0xC2: 1, 0xC3: 1, 0xCA: 5, 0xCB: 9, 0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9}.items():
    _FLAT[_first] = _size  # nil, false, true, floats, unsigned integers
for _first, _size in {0xD0: 2, 0xD1: 3, 0xD2: 5, 0xD3: 9, 0xD4: 3, 0xD5: 4, 0xD6: 6, 0xD7: 10, 0xD8: 18}.items():
    _FLAT[_first] = _size  # integers, short extensions

_BODIES = {0xC4: (1, 1), 0xC5: (1, 2), 0xC6: (1, 4), 0xC7: (2, 1), 0xC8: (2, 2), 0xC9: (2, 4)}  # bytes, extensions
_BODIES |= {0xD9: (1, 1), 0xDA: (1, 2), 0xDB: (1, 4)}  # texts; all: (bytes that are no length, bytes of the length)
_LISTS = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}  # (bytes of the length, objects for each of it)


def check_frame(data: bytes, max_objects: int) -> None:
    """Walks a frame in O(max_objects) time and O(1) memory.

    Raises:
        SizeLimitError: it holds, or says that it holds, more than `max_objects` objects.
        DecodeError: it ends too early, or a byte begins nothing.

    """
    position, waiting, declared = 0, 1, 1  # objects that are declared and not yet seen; all that were declared
    try:
        while waiting:
            first = data[position]
            waiting -= 1
            size = _FLAT[first]
            if size > 0:
                position += size
                continue
            position, inside = _open(data, first, position)
            waiting += inside
            declared += inside
            if declared > max_objects:
                raise SizeLimitError("group", f"more than {max_objects:,} objects in one frame")
    except IndexError:
        position = len(data) + 1
    if position > len(data):
        raise DecodeError("group", "not a msgpack frame: it ends before what it declares")


def _open(data: bytes, first: int, position: int) -> tuple[int, int]:
    """(position of what comes next, objects inside) for an object whose header has a length."""
    if first <= 0x8F:
        return position + 1, 2 * (first & 0x0F)
    if first <= 0x9F:
        return position + 1, first & 0x0F
    if first in _BODIES:
        fixed, width = _BODIES[first]
        return position + fixed + width + int.from_bytes(data[position + 1 : position + 1 + width], "big"), 0
    if first in _LISTS:
        width, each = _LISTS[first]
        return position + 1 + width, each * int.from_bytes(data[position + 1 : position + 1 + width], "big")
    raise DecodeError("group", f"not a msgpack frame: no object begins with {first:#x}")
