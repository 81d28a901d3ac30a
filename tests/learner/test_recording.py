"""The file of a recorded step: what goes in comes out, and nothing else is taken for one."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from learner.recording import Arrays, RecordedFile, Recording, decode, digest_of, encode, read, recorded_files
from shared.codec import encode_group
from shared.errors import DecodeError, SchemaVersionError
from tests import builders


def recording(**changes: Any) -> Recording:
    n = 5
    tokens: Arrays = {
        "policy_logprobs": np.linspace(-1, 0, n, dtype=np.float32),
        "behavior_logprobs": np.linspace(-2, 0, n, dtype=np.float32),
        "advantages": np.ones(n, dtype=np.float64),
        "sequence_of": np.array([0, 0, 1, 300, 300]),
        "micro_batch_of": np.zeros(n, dtype=np.int64),
        "expert": np.array([True, False, False, True, False]),
        "group_of": np.zeros(301, dtype=np.int64),
        "rewards": np.linspace(0, 1, 301),
    }
    values = Recording(
        step=7, epoch=2, at=1.5, batch=6, pass_number=0, first_of_batch=True, policy_version=5, staleness={5: 0, 3: 2},
        groups=(encode_group(builders.group()),), tokens=tokens, objective="p3o", knobs={"kl_estimator": "k3"},
        advantage="group_std", micro_batch_tokens=64, learning_rate=1e-3, loss=0.25, grad_norm=math.inf, skipped="",
        statistics={"token_ess": 0.5}, dtype="float32", device="cpu", threads=1,
        matrix_dtype="float32",
    )  # fmt: skip
    return replace(values, **changes)


def test_a_recording_comes_back_as_it_was_dtypes_included() -> None:
    original = recording()
    back = decode(encode(original))
    for field in fields(Recording):
        if field.name != "tokens":
            assert getattr(back, field.name) == getattr(original, field.name)
    assert back.tokens.keys() == original.tokens.keys()
    for name, array in original.tokens.items():
        assert back.tokens[name].dtype == array.dtype
        assert np.array_equal(back.tokens[name], array)
    assert back.decoded_groups()[0].prompt_index == 0


def test_names_tell_all_and_sort_by_age(tmp_path: Path) -> None:
    files = [
        RecordedFile(1, 99_999_999, False, True, 3), RecordedFile(2, 5, True, False, 3),
        RecordedFile(2, 6, False, False, 3), RecordedFile(10, 1, True, True, 3),
    ]  # fmt: skip
    for file in reversed(files):
        (tmp_path / file.name).write_bytes(b"abc")
    (tmp_path / "notes.txt").write_text("of somebody")
    assert recorded_files(tmp_path) == files
    assert recorded_files(tmp_path / "none") == []


def test_no_flipped_bit_and_no_torn_end_passes() -> None:
    data = encode(recording())
    rng = np.random.default_rng(0)
    for position in [*rng.integers(0, len(data), 300).tolist(), *range(40)]:
        broken = bytearray(data)
        broken[position] ^= 1 << int(rng.integers(8))
        with pytest.raises(DecodeError):
            decode(bytes(broken))
    for end in (0, 1, 50, len(data) // 2, len(data) - 1):
        with pytest.raises(DecodeError):
            decode(data[:end])


@pytest.mark.parametrize("foreign", [b"", b"rubbish", msgpack.packb([1, 2]), msgpack.packb({"schema": [1, 0]})])
def test_what_is_no_recording_is_refused(foreign: bytes, tmp_path: Path) -> None:
    path = tmp_path / "e0001-s00000001.msgpack"
    path.write_bytes(foreign)
    with pytest.raises(DecodeError):
        read(path)


def resealed(change: dict[str, Any], schema: tuple[int, int] = (1, 0)) -> bytes:
    """A file whose checksum is right and whose content is not."""
    body = msgpack.unpackb(msgpack.unpackb(encode(recording()))["body"], strict_map_key=False)
    packed = msgpack.packb({**body, **change})
    return bytes(msgpack.packb({"schema": schema, "sha256": digest_of(schema, packed), "body": packed}))


def column(array: np.ndarray[Any, Any]) -> tuple[str, str, bytes]:
    return array.dtype.str, array.dtype.str, array.tobytes()


def test_a_newer_schema_says_so_and_a_newer_minor_is_read() -> None:
    with pytest.raises(SchemaVersionError, match="version 2"):
        decode(resealed({}, (2, 0)))
    assert decode(resealed({"of_tomorrow": 1}, (1, 9))).step == 7


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"step": "many"}, "step"),
        ({"groups": [1]}, "groups"),
        ({"advantage": "none"}, "advantage"),
        ({"tokens": {}}, "tokens"),
        ({"tokens": [1]}, "tokens"),
    ],
)
def test_a_field_that_is_not_what_it_should_be_is_named(change: dict[str, Any], field: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(resealed(change))
    assert caught.value.field.startswith(field)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("advantages", column(np.zeros(4))),
        ("advantages", ("|O", "|O", b"12345678")),
        ("advantages", ("<f8", "<f8", b"123")),
        ("sequence_of", column(np.full(5, 301))),
        ("group_of", column(np.full(301, 1))),
        ("expert", 3),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(name: str, value: object) -> None:
    tokens = {key: column(array) for key, array in recording().tokens.items()}
    with pytest.raises(DecodeError, match=f"tokens.{name}"):
        decode(resealed({"tokens": {**tokens, name: value}}))


@pytest.mark.parametrize("field", ["policy_logprobs", "advantages", "ref_logprobs"])
def test_the_offending_group_is_named_by_any_number_that_is_not_finite(field: str) -> None:
    tokens = dict(recording().tokens)
    tokens[field] = tokens.get(field, tokens["policy_logprobs"]).copy()
    tokens[field][2] = math.nan
    assert recording(tokens=tokens).offending_groups() == ("run:0",)
    assert recording().offending_groups() == ()


def test_a_ratio_beyond_float32_is_an_offence() -> None:
    tokens = dict(recording().tokens)
    tokens["behavior_logprobs"] = np.array([-120, -1, -1, -1, -1], dtype=np.float32)
    assert recording(tokens=tokens).offending_groups() == ("run:0",)
