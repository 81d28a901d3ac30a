"""Any two buffers of one length survive the way through a patch; nothing that is not a patch gets through."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

import shared.differences
import shared.patch
from shared.errors import StoreError
from shared.patch import apply, encode

WIDTHS = (1, 2, 4, 8)


def applied(old: bytes, patch: bytes, threads: int = 1) -> bytes:
    out = bytearray(b"\xa5" * len(old))
    apply(memoryview(old), memoryview(patch), memoryview(out), threads)
    return bytes(out)


def survives(old: bytes, new: bytes, width: int, threads: int = 1) -> bytes:
    """The patch, after it has proven itself."""
    patch = encode(memoryview(old), memoryview(new), width, threads)
    assert applied(old, patch, threads) == new
    return patch


def bfloat16_weights(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 0.02, count).astype(np.float32)


def as_bfloat16(weights: NDArray[np.float32]) -> bytes:
    """Rounded to nearest, ties up: near enough to what torch does."""
    return ((weights.view(np.uint32) + 0x8000) >> 16).astype(np.uint16).tobytes()


@settings(max_examples=150)
@given(data=st.data(), width=st.sampled_from(WIDTHS), chunk=st.sampled_from([8, 64, 2**20]))
def test_every_pair_of_buffers_survives_in_every_width_and_chunk(data: st.DataObject, width: int, chunk: int) -> None:
    old = data.draw(st.binary(max_size=200))
    new = bytearray(old)
    for _ in range(data.draw(st.integers(0, 12))):
        if new:
            new[data.draw(st.integers(0, len(new) - 1))] = data.draw(st.integers(0, 255))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared.patch, "CHUNK", chunk)
        survives(old, bytes(new), width)
        survives(old, data.draw(st.binary(min_size=len(old), max_size=len(old))), width)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("share", [0.0, 1e-5, 0.01, 0.3, 0.49, 0.51, 1.0])
def test_any_share_of_changed_elements_survives_over_several_chunks(width: int, share: float) -> None:
    rng = np.random.default_rng(7)
    old = rng.integers(0, 256, 2 * 2**20 + 5 * width + width // 2, dtype=np.uint8)
    new = old.copy()
    elements = np.flatnonzero(rng.random(len(old) // width) < share)
    new[elements * width] += 1
    patch = survives(old.tobytes(), new.tobytes(), width, threads=2)
    assert patch == encode(old.data, new.data, width), "threads change nothing"
    if share == 0:
        assert len(patch) < 200


@pytest.mark.parametrize("width", WIDTHS)
def test_changes_by_every_amount_survive_and_wrap_around(width: int) -> None:
    extremes = [0, 1, 2, 127, 128, 254, 255]
    old = np.array([a for a in extremes for _ in extremes] * 8, dtype=f"u{width}")
    new = np.array([b for _ in extremes for b in extremes] * 8, dtype=f"u{width}")
    top = np.iinfo(old.dtype).max // 255
    survives((old * top).tobytes(), (new * top).tobytes(), width)


def test_nans_keep_their_payload_and_zeros_their_sign() -> None:
    old = np.array([0.0, 1.0, np.nan, np.inf] * 100, dtype=np.float32)
    new = old.copy()
    new[0] = -0.0
    new.view(np.uint32)[[2, 7]] = [0x7FC00001, 0xFF800123]
    survives(old.tobytes(), new.tobytes(), 4)


def test_nothing_at_all_survives() -> None:
    survives(b"", b"", 2)


def test_whole_chunks_without_a_change_before_and_between_changes_survive() -> None:
    old = bytes(4 * 2**20)
    new = bytearray(old)
    for at in (0, 254, 255, 256, 510, 511, 3 * 2**20 - 1, 4 * 2**20 - 2):
        new[at] = 1
    assert len(survives(old, bytes(new), 1)) < 300
    assert len(survives(old, bytes(new), 2)) < 300


@pytest.mark.parametrize(("step", "most"), [(1e-6, 0.03), (1e-5, 0.13), (1e-4, 0.3)])
def test_a_step_of_bfloat16_weights_takes_few_bytes(step: float, most: float) -> None:
    weights = bfloat16_weights(2**20)
    signs = np.random.default_rng(1).choice([-1, 1], len(weights)).astype(np.float32)
    old, new = as_bfloat16(weights), as_bfloat16(weights + np.float32(step) * signs)
    assert len(survives(old, new, 2)) < most * len(new)


def test_what_has_nothing_in_common_takes_hardly_more_than_itself() -> None:
    rng = np.random.default_rng(3)
    old, new = (rng.integers(0, 256, 2**21 + 3, dtype=np.uint8).tobytes() for _ in range(2))
    assert len(survives(old, new, 4)) < 1.001 * len(new)


def test_buffers_of_two_lengths_and_odd_widths_are_refused() -> None:
    with pytest.raises(StoreError, match="no patch leads from 4 bytes to 5"):
        encode(memoryview(b"1234"), memoryview(b"12345"), 1)
    with pytest.raises(StoreError, match="3 is no element width"):
        encode(memoryview(b"123"), memoryview(b"124"), 3)


def a_patch() -> tuple[bytes, bytes, bytes]:
    """Over three chunks: a sparse one, one without a change, a dense one, and bytes left over."""
    rng = np.random.default_rng(5)
    old = rng.integers(0, 256, 3 * 2**20 + 1, dtype=np.uint8)
    new = old.copy()
    new[100 : 2**20 : 5000] ^= 3
    new[2 * 2**20 :] += 7
    return old.tobytes(), new.tobytes(), encode(old.data, new.data, 2)


def test_every_altered_byte_is_found() -> None:
    old, _, patch = a_patch()
    rng = np.random.default_rng(0)
    places = {*range(130), *rng.integers(0, len(patch), 100).tolist()}
    for place in places:
        altered = bytearray(patch)
        altered[place] ^= 1 << (place % 8)
        with pytest.raises(StoreError):
            applied(old, bytes(altered))


def test_every_torn_patch_is_found() -> None:
    old, _, patch = a_patch()
    for length in [*range(0, 130, 3), len(patch) - 1]:
        with pytest.raises(StoreError, match="torn"):
            applied(old, patch[:length])
    with pytest.raises(StoreError, match="torn"):
        applied(old, patch + b"x")


def test_a_patch_against_other_bytes_is_found_where_they_differ() -> None:
    old, _, patch = a_patch()
    other = bytearray(old)
    other[2**20 + 17] ^= 1  # where the patch itself changes nothing
    with pytest.raises(StoreError, match=r"made against other bytes than these: they differ after 1,048,576"):
        applied(bytes(other), patch)


def test_a_patch_of_another_size_or_format_is_refused() -> None:
    old, _, patch = a_patch()
    with pytest.raises(StoreError, match="not of 4 into 4"):
        applied(old[:4], patch)
    with pytest.raises(StoreError, match="not of 3,145,729 into 4"):
        apply(memoryview(old), memoryview(patch), memoryview(bytearray(4)))
    with pytest.raises(StoreError, match="no patch"):
        applied(old, b"x" * 200)
    newer = patch[:8] + b"\x02" + patch[9:]
    with pytest.raises(StoreError, match="upgrade the older side"):
        applied(old, newer)


def resealed(payload: bytes, width: int, size: int) -> bytes:
    """A patch of one chunk whose checksums are right, whatever its payload says."""
    p = shared.patch
    row = p._ROW.pack(len(payload), xxh3_64_intdigest(payload), 0)
    head = p._HEADER.pack(p.MAGIC, p.FORMAT, width, p.CHUNK, size)
    return head + p._SUM.pack(xxh3_64_intdigest(head + row)) + row + payload


def payload_of(patch: bytes) -> bytes:
    """What is left of a patch of one chunk without its header and table."""
    return patch[shared.patch._HEADER.size + shared.patch._SUM.size + shared.patch._ROW.size :]


def plane(values: list[int], size: int | None = None) -> bytes:
    return shared.differences._PLANE.pack(0, len(values) if size is None else size, len(values)) + bytes(values)


def sparse(count: int, *planes: bytes) -> bytes:
    return b"\x01" + shared.differences._COUNT.pack(count) + b"".join(planes)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x09",
        b"\x00left over",
        b"\x01\x01",
        sparse(1, plane([20]), plane([0])),  # an element after the last one
        sparse(2, plane([1]), plane([0, 0])),  # fewer elements than counted
        sparse(1, plane([255]), plane([0])),  # none, where one is counted
        sparse(2**32 - 1, plane([0]), plane([0])),
        sparse(1, plane([0] * 17), plane([0])),  # more gaps than elements
        sparse(1, plane([0]), plane([0, 0])),
        sparse(1, plane([0]), plane([0], size=2)),
        sparse(1, plane([0]), b"\x02" + plane([0])[1:]),
        sparse(1, plane([0]), plane([0], size=2**32 - 1)),
        b"\x02" + plane([0] * 15),
        b"\x02" + plane([0] * 17),
        b"\x02" + shared.differences._PLANE.pack(1, 16, 4) + b"\xff\xff\xff\xff",
    ],
)
def test_a_payload_that_lies_is_refused_with_right_checksums_too(payload: bytes) -> None:
    with pytest.raises(StoreError, match="damaged"):
        applied(bytes(16), resealed(payload, 1, 16))


def test_a_plane_that_inflates_to_more_than_it_says_is_not_inflated_further() -> None:
    bomb = shared.differences._coded_plane(np.zeros(2**24, dtype=np.uint8))
    [how, _, length] = shared.differences._PLANE.unpack_from(bomb)
    small = shared.differences._PLANE.pack(how, 16, length) + bomb[shared.differences._PLANE.size :]
    for payload in (b"\x02" + bomb, b"\x02" + small):
        patch = resealed(payload, 1, 16)
        tracemalloc.start()
        with pytest.raises(StoreError, match="damaged"):
            applied(bytes(16), patch)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2**20


@pytest.mark.parametrize("change", [{"width": 3}, {"width": 16}, {"chunk": 0}, {"chunk": 2**31}, {"chunk": 3}])
def test_a_header_that_lies_is_refused(change: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared.patch, "CHUNK", change.get("chunk", 2**20))
    with pytest.raises(StoreError, match="element width or chunk size"):
        applied(bytes(16), resealed(b"\x00", change.get("width", 2), 16))
