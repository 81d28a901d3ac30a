"""The codec: round trips, and bytes that are not a group."""

import contextlib
import math
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.codec import SCHEMA, Limits, decode_group, encode_group
from shared.errors import DecodeError, SchemaVersionError, SizeLimitError
from shared.types import Group, SamplingSettings, Source, VersionSpan
from tests.builders import group, trajectory


def equal(a: Group, b: Group) -> bool:
    return encode_group(a) == encode_group(b)


def broken(**changes: Any) -> bytes:
    """A well-formed frame with some top-level fields replaced; None removes one."""
    frame = msgpack.unpackb(encode_group(group()))
    frame.update(changes)
    return bytes(msgpack.packb({k: v for k, v in frame.items() if v is not None}))


def broken_trajectory(**changes: Any) -> bytes:
    frame = msgpack.unpackb(encode_group(group()))
    frame["trajectories"][1].update(changes)
    return bytes(msgpack.packb(frame))


def test_a_group_comes_back_as_it_was() -> None:
    mixed = trajectory(
        6,
        source=np.array([0, 0, 1, 1, 0, 2], dtype=np.uint8),
        loss_mask=np.array([1, 1, 0, 0, 1, 0], dtype=np.bool_),
        versions=(VersionSpan(3, 0, 2), VersionSpan(9, 2, 6)),
        sampling=SamplingSettings(temperature=0.7, max_tokens=6, stop_token_ids=(2, 5)),
        finish_reason="length",
    )
    before = group(7, trajectories=(mixed, trajectory(1)), extensions={"routing": b"\x00\x01"})
    after = decode_group(encode_group(before))
    assert equal(before, after)
    t = after.trajectories[0]
    assert t.token_versions().tolist() == [3, 3, 9, 9, 9, 9]
    assert t.source.tolist() == [0, 0, 1, 1, 0, 2]
    assert t.loss_mask.tolist() == [True, True, False, False, True, False]
    assert (t.sampling, t.finish_reason) == (mixed.sampling, "length")
    np.testing.assert_array_equal(t.behavior_logprobs, mixed.behavior_logprobs)
    assert after.extensions == {"routing": b"\x00\x01"}


@settings(max_examples=50)
@given(lengths=st.lists(st.integers(0, 40), min_size=1, max_size=5), seed=st.integers(0, 2**20))
def test_any_shape_comes_back(lengths: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    trajectories = tuple(
        trajectory(
            n,
            seed=seed,
            source=rng.integers(0, len(Source), n, dtype=np.uint8),
            loss_mask=rng.integers(0, 2, n).astype(np.bool_),
            behavior_logprobs=rng.choice([0.0, -1e30, math.nan, -math.inf], n).astype(np.float32),
        )
        for n in lengths
    )
    before = group(trajectories=trajectories)
    if any(lengths):
        assert equal(decode_group(encode_group(before)), before)
    else:
        with pytest.raises(DecodeError, match="not one of them has a token"):
            decode_group(encode_group(before))


def test_arrays_are_raw_and_an_entry_is_small() -> None:
    """8 bytes a token and little beside it: run lengths for versions and sources, bits for the mask."""
    size = len(encode_group(group(trajectories=tuple(trajectory(1000) for _ in range(8)))))
    assert size < 8 * 1000 * 8 * 1.06


def test_an_older_reader_takes_newer_minor_versions_and_leaves_unknown_fields_alone() -> None:
    data = broken(schema=[SCHEMA[0], SCHEMA[1] + 7], something_new=[1, 2])
    assert equal(decode_group(data), group())


def test_a_newer_major_version_is_refused_with_what_to_do() -> None:
    with pytest.raises(SchemaVersionError, match=r"version 2\.0, this reader knows 1\.x: upgrade the older side"):
        decode_group(broken(schema=[2, 0]))


@pytest.mark.parametrize(
    ("data", "field", "problem"),
    [
        (b"", "group", "not a msgpack frame"),
        (b"\xc1", "group", "not a msgpack frame"),
        (b"\x01", "group", "expected a map, found int"),
        (encode_group(group())[:-3], "group", "not a msgpack frame"),
        (encode_group(group()) + b"x", "group", "not a msgpack frame"),
        (broken(schema=None), "schema", "missing"),
        (broken(schema=["1"]), "schema", "is not"),
        (broken(group_id=7), "group_id", "expected str, found int"),
        (broken(prompt_index=-1), "prompt_index", "not in"),
        (broken(prompt_index=True), "prompt_index", "expected int, found bool"),
        (broken(prompt_ids=b"123"), "prompt_ids", "no whole number"),
        (broken(started_at="now"), "started_at", "expected a number, found str"),
        (broken(extensions={"a": 1}), "extensions['a']", "unexpected int"),
        (broken(trajectories={}), "trajectories", "expected list, found dict"),
        (broken(trajectories=[1]), "trajectories[0]", "expected a map, found int"),
        (broken_trajectory(token_ids=None), "trajectories[1].token_ids", "expected bytes, found NoneType"),
        (broken_trajectory(behavior_logprobs=b"1234"), "trajectories[1].behavior_logprobs", "1 items where token_ids"),
        (broken_trajectory(loss_mask=b""), "trajectories[1].loss_mask", "0 bytes of packed bits for 4 tokens"),
        (broken_trajectory(source=[9, 4]), "trajectories[1].source", "not all one of"),
        (broken_trajectory(source=[0, 3]), "trajectories[1].source", "do not cover 4 tokens"),
        (broken_trajectory(versions=[0, 2, 1]), "trajectories[1].versions", "expected [value, run length"),
        (broken_trajectory(versions=[0, 4, 1, 0]), "trajectories[1].versions", "do not cover"),
        (broken_trajectory(versions=[-1, 4]), "trajectories[1].versions", "non-negative"),
        (broken_trajectory(reward=None), "trajectories[1].reward", "missing"),
        (broken_trajectory(rewards={"a": "b"}), "trajectories[1].rewards['a']", "unexpected str"),
        (broken_trajectory(finish_reason="bored"), "trajectories[1].finish_reason", "is none of"),
        (broken_trajectory(sampling={}), "trajectories[1].sampling.temperature", "missing"),
    ],
)
def test_a_bad_entry_names_the_field(data: bytes, field: str, problem: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode_group(data)
    assert caught.value.field == field
    assert problem in str(caught.value)


def test_limits_are_held_before_anything_is_allocated() -> None:
    data = encode_group(group())
    with pytest.raises(SizeLimitError, match="bytes; at most 10 are read"):
        decode_group(data, Limits(max_bytes=10))
    with pytest.raises(SizeLimitError, match="4; 1 to 3 are read"):
        decode_group(data, Limits(max_trajectories=3))
    with pytest.raises(SizeLimitError, match=r"trajectories\[3\]\.token_ids: 6 items; at most 5 are read"):
        decode_group(data, Limits(max_tokens=5))
    with pytest.raises(SizeLimitError, match="prompt_ids: 9 items; at most 6 are read"):
        decode_group(broken(prompt_ids=bytes(36)), Limits(max_tokens=6))


@settings(max_examples=300)
@given(data=st.data())
def test_damaged_bytes_give_a_typed_error_or_a_group(data: st.DataObject) -> None:
    good = bytearray(encode_group(group()))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(DecodeError):
        assert isinstance(decode_group(bytes(good)), Group)
