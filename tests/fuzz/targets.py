"""What fuzzing calls: each takes any bytes, and returns only if the code under test did what it promises.

A typed error or a correct value; any other exception, and any value that does not survive its own encoding, ends the
fuzzing with the input that did it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import msgpack

from learner.recording import decode, digest_of, encode
from shared import untrusted
from shared.codec import Limits, decode_group, encode_group
from shared.config.lag import from_wish, to_wish
from shared.control import EvaluationResult
from shared.errors import DecodeError, StoreError
from shared.lag import Moment, resolve
from shared.manifest import Manifest, Probe, StoredFile, StoredPatch, parse, seal, unseal
from shared.patch import apply
from shared.patch import encode as encode_patch
from shared.transfer import Answer, Call, read_answer, read_call
from tests.builders import group, trajectory
from tests.fuzz.grammar import Choices, spoiled
from tests.learner.test_recording import recording as a_recording
from tests.shared.test_patch import payload_of, resealed

LIMITS = Limits(max_bytes=2**20, max_trajectories=64, max_tokens=4096, max_objects=2**14)
GROUP = msgpack.unpackb(encode_group(group(size=2, extensions={"routing": b"12"})))
XXH = "xxh3_128:" + "0" * 32
FILES = [StoredFile("a", 1, XXH), StoredFile("b", 9, XXH, StoredPatch("b.patch", 2, XXH))]
MANIFEST = asdict(Manifest(3, 2, 30, 1.5, FILES, Probe([[1, 2]], [[-0.5]]), base=2, depth=1))
RECORDING = msgpack.unpackb(msgpack.unpackb(encode(a_recording()))["body"], strict_map_key=False)
CONTROL: list[dict[str, Any]] = [
    asdict(EvaluationResult(0, 0.25, 64, 5.0, 1.0, "r0", 1.0)),
    {"kind": "rollout", "state": "x", "since": 1.0, "pid": 1, "lag": 0, "lag_served": 1, "proof_max_nats": 1e-5},
    {"kind": "pause", "text": "x", "by": "operator", "at": 1.0},
    {"lag": "choice:0,4*2", "dwell": "4 versions", "control_share": 0.25, "servers": {"r1": "0@0,8@9", "r2": 3}},
    asdict(Call(1, 2, "go", 3, ["r0"], {"r0": 1}, 1, 2, "127.0.0.1", 29_500)),
    asdict(Answer(1, 2, "failed", "x", touched=True)),
]
BASE = bytes(range(64))  # what a patch is tried on: 32 elements
PATCHES = [encode_patch(memoryview(BASE), memoryview(new), 2) for new in (BASE[:-9] + b"\0" + BASE[-8:], BASE[::-1])]
LONGEST_ERROR = 3000  # characters: it goes into logs and dead letters


def codec(data: bytes) -> None:
    """A stream entry: the bytes themselves, or (odd first byte) a good group that they spoil."""
    raw = data[1:]
    if data[:1] and data[0] % 2:
        raw = msgpack.packb(spoiled(GROUP, Choices(raw), binary=True))
    try:
        found = decode_group(raw, LIMITS)
    except DecodeError as error:
        _check_error(error)
        return
    again = encode_group(found)
    assert encode_group(decode_group(again, LIMITS)) == again
    for t in found.trajectories:
        assert t.token_versions().shape == t.source.shape == t.loss_mask.shape == t.token_ids.shape


def manifest(data: bytes) -> None:
    """A manifest: the bytes themselves, or (odd first byte) a good one that they spoil, with a right checksum."""
    raw = data[1:]
    if data[:1] and data[0] % 2:
        raw = seal(spoiled(MANIFEST, Choices(raw), binary=False))
    try:
        found = parse(unseal(raw, "here"), "here")
    except StoreError as error:
        _check_error(error)
        return
    assert parse(unseal(seal(asdict(found)), "here"), "here") == found
    for name in (name for file in found.files for name in (file.name, file.stored.name)):
        assert "/" not in name
        assert name not in ("", ".", "..")
    assert found.base < max(found.policy_version, 0), "a chain of patches ends"


def control(data: bytes) -> None:
    """What another process wrote to the control state: the bytes, or (odd first byte) a good value that they spoil."""
    raw = data[1:]
    if data[:1] and data[0] % 2:
        choices = Choices(raw)
        raw = json.dumps(spoiled(CONTROL[choices.below(len(CONTROL))], choices, binary=False)).encode()
    json.dumps(untrusted.heartbeat(raw))
    json.dumps(untrusted.event(raw))
    call = read_call(raw)
    if call is not None and call.stage == "go":
        assert all(0 < rank < call.world_size for rank in call.ranks.values())
    read_answer(raw)
    result = untrusted.record(EvaluationResult, raw)
    if result is not None:
        json.dumps(asdict(result))
    wish = from_wish(raw)
    if wish is not None:
        assert from_wish(to_wish(wish)) == wish
        assert all(0 <= resolve(wish, name, 0, Moment(5, 5, 5)).lag <= wish.largest for name in ("r0", "r1"))


def _check_error(error: Exception) -> None:
    assert len(str(error)) < LONGEST_ERROR, f"an error of {len(str(error)):,} characters"


def recording(data: bytes) -> None:
    """A recorded step: the bytes themselves, or (odd first byte) a good one that they spoil, with a right checksum."""
    raw = data[1:]
    if data[:1] and data[0] % 2:
        body = msgpack.packb(spoiled(RECORDING, Choices(raw), binary=True))
        raw = msgpack.packb({"schema": [1, 0], "sha256": digest_of([1, 0], body), "body": body})
    try:
        found = decode(raw)
        found.decoded_groups()
        found.offending_groups()
    except DecodeError as error:
        _check_error(error)
        return
    assert encode(decode(encode(found))) == encode(found)


def patch(data: bytes) -> None:
    """A patch: the bytes themselves, or (odd first byte) a good one's payload that they spoil, with right checksums."""
    raw = data[1:]
    if data[:1] and data[0] % 2:
        payload = bytearray(payload_of(PATCHES[len(raw) % len(PATCHES)]))
        for place, value in zip(raw[::2], raw[1::2], strict=False):
            payload[place % len(payload)] = value
        raw = resealed(bytes(payload), 2, len(BASE))
    guarded = bytearray(b"\xa5" * (len(BASE) + 16))
    try:
        apply(memoryview(BASE), memoryview(raw), memoryview(guarded)[8:-8])
    except StoreError as error:
        _check_error(error)
    assert guarded[:8] == guarded[-8:] == b"\xa5" * 8, "it wrote beyond its bounds"


TARGETS: dict[str, Callable[[bytes], None]] = {
    "codec": codec, "manifest": manifest, "control": control, "recording": recording, "patch": patch,
}  # fmt: skip


def seeds(target: str) -> list[bytes]:
    """Good inputs to begin from: as they are, and with something to spoil them by."""
    good = {
        "codec": [msgpack.packb(GROUP), encode_group(group(trajectories=(trajectory(2),))), b"\xdd\xff\xff\xff\xff"],
        "manifest": [seal(MANIFEST), b"{}", b"[[]]"],
        "recording": [encode(a_recording()), msgpack.packb({"schema": [1, 0], "sha256": b"", "body": b""})],
        "control": [json.dumps(value).encode() for value in CONTROL],
        "patch": PATCHES,
    }
    return [b"\x00" + value for value in good[target]] + [b"\x01" + bytes([n] * 8) for n in range(1, 64, 7)]
