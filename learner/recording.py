"""One optimizer step as the learner saw it, in a file of its own: msgpack with a checksum, never pickle.

    <run folder>/recorded/e0003-s00000123.msgpack             step 123, of learner epoch 3
                          e0003-s00000124-skipped.msgpack     not finite: the weights did not change
                          e0002-s00000130-abandoned.msgpack   a restore went back behind it

    file = {"schema": [major, minor], "sha256": of both others, "body"}
    body = {"step", ..., "groups": [payload of the stream, ...], "tokens": {field of Step: [dtype, stored dtype, raw]}}

Whole numbers are stored as narrow as they fit, and come back in their own dtype.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import msgpack
import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, TypeAdapter, ValidationError

from shared.codec import decode_group
from shared.errors import DecodeError, SchemaVersionError, SizeLimitError
from shared.frames import check_frame
from shared.types import Group

SCHEMA = (1, 1)
MAX_BYTES = 2**31  # of one file: more is not read
MAX_OBJECTS = 2**20  # in one file: a group and an array are one each
FOLDER = "recorded"

_NAME = re.compile(r"e(\d{4,})-s(\d{8,})(-skipped)?(-abandoned)?\.msgpack")
_DTYPES = {np.dtype(name).str for name in ("float32", "float64", "int64", "bool")}
_STORED = _DTYPES | {np.dtype(name).str for name in ("uint8", "uint16", "uint32", "uint64")}
_OF_SEQUENCES = ("group_of", "rewards")
_REQUIRED = ("policy_logprobs", "behavior_logprobs", "advantages", "sequence_of", *_OF_SEQUENCES)

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Recording:
    """All that one optimizer step was made of, and what became of it. n trained tokens of B trajectories."""

    __pydantic_config__ = ConfigDict(arbitrary_types_allowed=True)

    step: int
    epoch: int  # of the learner
    at: float  # unix seconds
    batch: int  # number of the batch of groups within the run
    pass_number: int  # over that batch, from 0
    first_of_batch: bool  # the weights are those that the batch began with
    policy_version: int  # the learner's latest published version
    staleness: dict[int, int]  # versions, of every version that drew a trained token
    groups: tuple[bytes, ...]  # as they were in the stream
    tokens: Arrays  # what the objective saw, by the names of `Step`: [n] each; group_of, rewards: [B]
    objective: str
    knobs: dict[str, bool | int | float | str]
    advantage: Literal["group_std", "group_mean", "leave_one_out"]
    micro_batch_tokens: int
    learning_rate: float  # step factor included
    loss: float
    grad_norm: float
    skipped: str  # '' or why the weights did not change
    statistics: dict[str, float]  # of the ratios of the whole step
    dtype: Literal["float32", "bfloat16"]  # model.dtype
    device: str  # cpu, cuda
    threads: int  # of torch: the order of long sums depends on it
    matrix_dtype: Literal["float32", "bfloat16"] = "float32"  # of matrix products

    def decoded_groups(self) -> list[Group]:
        """The groups. Raises DecodeError."""
        return [decode_group(payload) for payload in self.groups]

    def offending_groups(self) -> tuple[str, ...]:
        """Ids of the groups with a token whose numbers, or whose ratio, are not finite. Raises DecodeError."""
        with np.errstate(over="ignore", invalid="ignore"):
            ratio = np.exp(self.tokens["policy_logprobs"] - self.tokens["behavior_logprobs"])
        numbers = [v for name, v in self.tokens.items() if v.dtype.kind == "f" and name not in _OF_SEQUENCES]
        finite = np.isfinite([ratio, *numbers]).all(0)
        found = np.unique(self.tokens["group_of"][self.tokens["sequence_of"][~finite]])
        return tuple(decode_group(self.groups[i]).group_id for i in found)


_RECORDING: TypeAdapter[Recording] = TypeAdapter(Recording)


@dataclass(frozen=True, order=True)
class RecordedFile:
    """A file of the folder, by its name alone; they sort in the order in which they were written."""

    epoch: int
    step: int
    skipped: bool
    abandoned: bool
    bytes: int

    @property
    def name(self) -> str:
        """Its name."""
        marks = "-skipped" * self.skipped + "-abandoned" * self.abandoned
        return f"e{self.epoch:04d}-s{self.step:08d}{marks}.msgpack"


def recorded_files(folder: Path) -> list[RecordedFile]:
    """What is recorded in a folder, oldest first. Raises OSError."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _NAME.fullmatch(path.name)
        if match:
            epoch, step, skipped, abandoned = match.groups()
            try:
                size = path.stat().st_size
            except FileNotFoundError:
                continue  # the learner has just removed it
            found.append(RecordedFile(int(epoch), int(step), bool(skipped), bool(abandoned), size))
    return sorted(found)


def encode(recording: Recording) -> bytes:
    """The bytes of a file. The inverse of `decode`."""
    frame = {field.name: getattr(recording, field.name) for field in fields(recording)}
    frame["tokens"] = {name: _column(array) for name, array in recording.tokens.items()}
    body = msgpack.packb(frame, use_bin_type=True)
    outer = {"schema": SCHEMA, "sha256": digest_of(SCHEMA, body), "body": body}
    return bytes(msgpack.packb(outer, use_bin_type=True))


def digest_of(schema: Sequence[object], body: bytes) -> bytes:
    """The checksum of a file, over all that is in it."""
    return hashlib.sha256(repr(list(schema)).encode() + body).digest()


def read(path: Path) -> Recording:
    """The recording in a file.

    Raises:
        DecodeError: torn, altered, of a newer schema, too large or no recording at all.
        OSError: it cannot be read.

    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise SizeLimitError("file", f"{size:,} bytes; at most {MAX_BYTES:,} are read")
    return decode(path.read_bytes())


def decode(data: bytes) -> Recording:
    """The recording in a file's bytes. Raises DecodeError."""
    outer = _unpacked(data, "file")
    schema, body = outer.get("schema"), outer.get("body")
    if not isinstance(schema, list) or not schema or not isinstance(body, bytes):
        raise DecodeError("file", "not a recorded step")
    if schema[0] != SCHEMA[0]:
        raise SchemaVersionError("schema", f"version {schema[0]}, this reader knows {SCHEMA[0]}: upgrade the older")
    if digest_of(schema, body) != outer.get("sha256"):
        raise DecodeError("sha256", "the file was altered: its checksum does not match")
    frame = _unpacked(body, "body")
    frame["tokens"] = _arrays(frame.get("tokens"))
    try:
        recording = _RECORDING.validate_python(frame)
    except ValidationError as error:
        first = error.errors()[0]
        raise DecodeError(".".join(map(str, first["loc"])), first["msg"]) from None
    _check_indices(recording.tokens["group_of"], len(recording.groups), "group_of")
    return recording


def _unpacked(data: bytes, what: str) -> dict[str, Any]:
    """A map of few objects; nothing is unpacked before its headers have said so."""
    check_frame(data, MAX_OBJECTS)
    try:
        frame = msgpack.unpackb(data, raw=False, strict_map_key=False)
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        raise DecodeError(what, f"torn, or not a msgpack frame ({type(error).__name__})") from None
    if not isinstance(frame, dict):
        raise DecodeError(what, f"expected a map, found {type(frame).__name__}")
    return frame


def _column(array: npt.NDArray[Any]) -> tuple[str, str, bytes]:
    stored = array
    if array.dtype.kind == "i" and len(array) and array.min() >= 0:
        stored = array.astype(np.min_scalar_type(array.max()))
    return array.dtype.str, stored.dtype.str, stored.tobytes()


def _arrays(columns: object) -> Arrays:
    """The token arrays, of fitting lengths; indices point at what is there."""
    if not isinstance(columns, Mapping) or any(name not in columns for name in _REQUIRED):
        raise DecodeError("tokens", f"without one of {', '.join(_REQUIRED)}")
    arrays = {str(name): _array(str(name), column) for name, column in columns.items()}
    lengths = {name: len(arrays["rewards" if name in _OF_SEQUENCES else "policy_logprobs"]) for name in arrays}
    for name, array in arrays.items():
        if len(array) != lengths[name]:
            raise DecodeError(f"tokens.{name}", f"{len(array)} values where there should be {lengths[name]}")
    _check_indices(arrays["sequence_of"], len(arrays["rewards"]), "sequence_of")
    return arrays


def _check_indices(indices: npt.NDArray[Any], count: int, name: str) -> None:
    if len(indices) and not 0 <= indices.min() <= indices.max() < count:
        raise DecodeError(f"tokens.{name}", f"not all in [0, {count})")


def _array(name: str, column: object) -> npt.NDArray[Any]:
    match column:
        case [str(dtype), str(stored), bytes(raw)] if dtype in _DTYPES and stored in _STORED:
            try:
                return np.frombuffer(raw, dtype=np.dtype(stored)).astype(np.dtype(dtype))
            except (TypeError, ValueError) as error:
                raise DecodeError(f"tokens.{name}", str(error)) from None
    raise DecodeError(f"tokens.{name}", f"not [dtype, stored dtype, bytes] with a dtype of {sorted(_DTYPES)}")
