"""Frames made to hurt their reader: refused by their headers, before anything of that size exists."""

from __future__ import annotations

import time
import tracemalloc

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.codec import decode_group
from shared.errors import DecodeError, SizeLimitError
from shared.frames import check_frame

MANY = 5 * 10**6

BOMBS = {
    "a list that declares 2^32 items": b"\xdd\xff\xff\xff\xff",
    "a map that declares 2^32 pairs": b"\xdf\xff\xff\xff\xff",
    "bytes that declare 4 GiB": b"\xc6\xff\xff\xff\xff",
    "a thousand nested lists, each declaring all that is left": b"".join(
        b"\xdd" + (5 * (1000 - n)).to_bytes(4, "big") for n in range(1000)
    ),
    "five million empty lists": b"\xdd" + MANY.to_bytes(4, "big") + b"\x90" * MANY,
    "five million empty maps": b"\xdd" + MANY.to_bytes(4, "big") + b"\x80" * MANY,
    "five million short texts": b"\xdd" + MANY.to_bytes(4, "big") + b"\xa2ab" * MANY,
    "a hundred thousand lists in one another": b"\x91" * 100_000 + b"\xc0",
    "a map with as many keys": b"\xdf"
    + (MANY // 2).to_bytes(4, "big")
    + b"".join(b"\xa1a\x90" for _ in range(MANY // 2)),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_in_little_time_and_memory(bomb: str) -> None:
    data = BOMBS[bomb]
    tracemalloc.start()
    began = time.process_time()
    try:
        with pytest.raises(DecodeError):
            decode_group(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * 2**20, f"{peak:,} bytes for an input of {len(data):,}"
    assert time.process_time() - began < 10, "seconds of the processor"


def test_what_a_frame_may_hold_bounds_what_its_reader_allocates() -> None:
    data = msgpack.packb([[""] * 100] * 100)
    check_frame(data, 10_101)
    with pytest.raises(SizeLimitError, match="more than 10,100 objects"):
        check_frame(data, 10_100)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=40)
    | st.binary(max_size=300) | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=40)),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=9), inner, max_size=18),
    max_leaves=20,
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(value=values, cut=st.integers(1, 50))
def test_the_walk_agrees_with_the_library_on_where_a_frame_ends(value: object, cut: int) -> None:
    data = msgpack.packb(value)
    check_frame(data, 10**6)
    with pytest.raises(DecodeError):
        check_frame(data[:-cut], 10**6)


@settings(max_examples=300, deadline=None)
@given(data=st.binary(min_size=1, max_size=60))
def test_what_the_library_reads_the_walk_lets_through(data: bytes) -> None:
    unpacker = msgpack.Unpacker(raw=True, strict_map_key=False)
    unpacker.feed(data)
    try:
        unpacker.skip()
        whole = True
    except (ValueError, msgpack.UnpackException):
        whole = False
    if whole:
        check_frame(data, 10**6)
