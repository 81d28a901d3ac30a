"""Groups to bytes and back: one msgpack frame, arrays as raw little-endian bytes, never pickle.

    frame = {"schema": [major, minor], "group_id", "prompt_index", ..., "prompt_ids": <i4[P]>,
             "trajectories": [{"token_ids": <i4[T]>, "behavior_logprobs": <f4[T]>, "loss_mask": packed bits,
                               "source": [value, run length, ...], "versions": [policy_version, run length, ...],
                               "reward", "rewards", "finish_reason", "sampling"}, ...]}

A reader takes any minor version of its own major version (unknown keys are left alone) and refuses a
newer major version. Whatever else is wrong raises `DecodeError` with the path of the field.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, get_args

import msgpack
import numpy as np
import numpy.typing as npt

from shared.errors import DecodeError, SchemaVersionError, SizeLimitError
from shared.frames import check_frame
from shared.lag import CONTROL, Arm
from shared.types import FinishReason, Group, SamplingSettings, Source, Trajectory, VersionSpan

SCHEMA = (1, 1)  # 1.1 adds arm

_INT32 = np.dtype("<i4")
_FLOAT32 = np.dtype("<f4")


@dataclass(frozen=True)
class Limits:
    """What a reader is willing to allocate for one group."""

    max_bytes: int = 256 * 2**20
    max_trajectories: int = 4096
    max_tokens: int = 2**20  # of one trajectory, and of the prompt
    max_objects: int = 2**20  # numbers, texts, lists and maps of the frame; about 30 for a trajectory
    max_text: int = 1024  # characters of an id or a name


DEFAULT_LIMITS = Limits()


def encode_group(group: Group) -> bytes:
    """Encodes a group. The inverse of `decode_group`."""
    return bytes(
        msgpack.packb(
            {
                "schema": SCHEMA,
                "group_id": group.group_id,
                "prompt_index": group.prompt_index,
                "environment": group.environment,
                "prompt_ids": _raw(group.prompt_ids, _INT32),
                "trajectories": [_pack_trajectory(t) for t in group.trajectories],
                "server_id": group.server_id,
                "lag": group.lag,
                "arm": group.arm,
                "started_at": group.started_at,
                "completed_at": group.completed_at,
                "trace_id": group.trace_id,
                "extensions": group.extensions,
            },
            use_bin_type=True,
        )
    )


def decode_group(data: bytes, limits: Limits = DEFAULT_LIMITS) -> Group:
    """Decodes a group; the arrays are read-only views of `data`.

    Raises:
        SchemaVersionError: written by a newer major version.
        SizeLimitError: larger than `limits`, found before anything of that size is allocated.
        DecodeError: anything else; `.field` is the path of the offending field.

    """
    if len(data) > limits.max_bytes:
        raise SizeLimitError("group", f"{len(data):,} bytes; at most {limits.max_bytes:,} are read")
    check_frame(data, limits.max_objects)
    frame = _Fields(_unpack(data), "", limits.max_text)
    _check_schema(frame)
    trajectories = frame.take("trajectories", list)
    if not 1 <= len(trajectories) <= limits.max_trajectories:
        raise SizeLimitError("trajectories", f"{len(trajectories)}; 1 to {limits.max_trajectories} are read")
    decoded: list[Trajectory] = []
    for i, item in enumerate(trajectories):
        known = (trajectories[i - 1]["sampling"], decoded[-1].sampling) if decoded else None
        decoded.append(_unpack_trajectory(_Fields(item, f"trajectories[{i}].", limits.max_text), limits, known))
    if not any(t.length for t in decoded):
        raise DecodeError("trajectories", "not one of them has a token")
    return Group(
        group_id=frame.text("group_id"),
        prompt_index=frame.natural("prompt_index"),
        environment=frame.text("environment"),
        prompt_ids=frame.array("prompt_ids", _INT32, limits.max_tokens),
        trajectories=tuple(decoded),
        server_id=frame.text("server_id"),
        lag=frame.natural("lag"),
        started_at=frame.number("started_at"),
        completed_at=frame.number("completed_at"),
        trace_id=frame.text("trace_id"),
        extensions=frame.mapping("extensions", bytes),
        arm=_arm(frame),
    )


def _arm(frame: _Fields) -> Arm:
    """'' where the writer knows of no arms, or of one that this reader does not know."""
    return CONTROL if frame.text("arm", "") == CONTROL else ""


def _pack_trajectory(t: Trajectory) -> dict[str, Any]:
    return {
        "token_ids": _raw(t.token_ids, _INT32),
        "behavior_logprobs": _raw(t.behavior_logprobs, _FLOAT32),
        "loss_mask": np.packbits(t.loss_mask).tobytes(),
        "source": _run_lengths(t.source),
        "versions": [n for s in t.versions for n in (s.policy_version, s.end - s.start)],
        "reward": t.reward,
        "rewards": t.rewards,
        "finish_reason": t.finish_reason,
        "sampling": asdict(t.sampling),
    }


def _unpack_trajectory(
    item: _Fields, limits: Limits, known: tuple[dict[str, Any], SamplingSettings] | None
) -> Trajectory:
    """`known` are the sampling settings of the trajectory before, packed and unpacked: those of a group are alike."""
    token_ids = item.array("token_ids", _INT32, limits.max_tokens)
    length = len(token_ids)
    finish_reason: Any = item.text("finish_reason")
    if finish_reason not in get_args(FinishReason):
        raise item.error("finish_reason", f"{finish_reason!r} is none of {get_args(FinishReason)}")
    sampling = item.take("sampling", dict)
    if known is None or sampling != known[0]:
        known = sampling, _unpack_sampling(_Fields(sampling, item.path + "sampling.", limits.max_text))
    return Trajectory(
        token_ids=token_ids,
        behavior_logprobs=item.array("behavior_logprobs", _FLOAT32, limits.max_tokens, length),
        loss_mask=item.bits("loss_mask", length),
        source=_expand_source(item, length),
        versions=_expand_versions(item, length),
        reward=item.number("reward"),
        rewards=item.mapping("rewards", float),
        finish_reason=finish_reason,
        sampling=known[1],
    )


def _unpack_sampling(item: _Fields) -> SamplingSettings:
    values: dict[str, Any] = {}
    for known in fields(SamplingSettings):
        if known.name in ("max_tokens", "top_k"):
            values[known.name] = item.take(known.name, int)
        elif known.name == "stop_token_ids":
            values[known.name] = tuple(item.take(known.name, list))
            if not all(isinstance(i, int) for i in values[known.name]):
                raise item.error(known.name, "not a list of token ids")
        else:
            values[known.name] = item.number(known.name)
    return SamplingSettings(**values)


def _expand_source(item: _Fields, length: int) -> npt.NDArray[np.uint8]:
    values, runs = item.runs("source", length)
    if any(value not in Source._value2member_map_ for value in values):
        raise item.error("source", f"{values[:8]} are not all one of {[int(s) for s in Source]}")
    return np.repeat(np.asarray(values, dtype=np.uint8), runs)


def _expand_versions(item: _Fields, length: int) -> tuple[VersionSpan, ...]:
    values, runs = item.runs("versions", length)
    spans, start = [], 0
    for version, run in zip(values, runs, strict=True):
        spans.append(VersionSpan(version, start, start + run))
        start += run
    return tuple(spans)


def _check_schema(frame: _Fields) -> None:
    schema = frame.take("schema", list)
    if len(schema) != 2 or not all(isinstance(n, int) for n in schema):
        raise frame.error("schema", f"{schema!r} is not [major, minor]")
    if schema[0] != SCHEMA[0]:
        raise SchemaVersionError(
            "schema", f"version {schema[0]}.{schema[1]}, this reader knows {SCHEMA[0]}.x: upgrade the older side"
        )


def _unpack(data: bytes) -> dict[Any, Any]:
    try:
        frame = msgpack.unpackb(data, raw=False, strict_map_key=True)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise DecodeError("group", f"not a msgpack frame: {type(error).__name__}: {error}") from None
    if not isinstance(frame, dict):
        raise DecodeError("group", f"expected a map, found {type(frame).__name__}")
    return frame


def _raw(array: npt.NDArray[Any], dtype: np.dtype[Any]) -> bytes:
    return np.ascontiguousarray(array, dtype=dtype).tobytes()


def _run_lengths(array: npt.NDArray[np.uint8]) -> list[int]:
    if not len(array):
        return []
    starts = np.concatenate(([0], np.flatnonzero(np.diff(array)) + 1))
    runs = np.diff(np.concatenate((starts, [len(array)])))
    return [int(n) for pair in zip(array[starts], runs, strict=True) for n in pair]


class _Fields:
    """Typed access to one decoded map; every failure names the path of the field."""

    def __init__(self, item: Any, path: str, max_text: int) -> None:
        self.path = path
        self._max_text = max_text
        if not isinstance(item, dict):
            raise DecodeError(path.rstrip("."), f"expected a map, found {type(item).__name__}")
        self._item = item

    def error(self, name: str, problem: str) -> DecodeError:
        return DecodeError(self.path + name, problem)

    def take(self, name: str, kind: type[Any]) -> Any:
        if name not in self._item:
            raise self.error(name, "missing")
        value = self._item[name]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.error(name, f"expected {kind.__name__}, found {type(value).__name__}")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        if default is not None and name not in self._item:
            return default
        value: str = self.take(name, str)
        if len(value) > self._max_text:
            raise SizeLimitError(self.path + name, f"{len(value):,} characters; at most {self._max_text} are read")
        return value

    def natural(self, name: str) -> int:
        value: int = self.take(name, int)
        if not 0 <= value < 2**62:
            raise self.error(name, f"{value} is not in [0, 2**62)")
        return value

    def number(self, name: str) -> float:
        value = self._item.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(name, "missing" if value is None else f"expected a number, found {type(value).__name__}")
        return float(value)

    def mapping(self, name: str, kind: Callable[[Any], Any]) -> dict[str, Any]:
        value = self.take(name, dict)
        for key, element in value.items():
            good = isinstance(element, bytes) if kind is bytes else type(element) in (int, float)
            if not isinstance(key, str) or len(key) > self._max_text or not good:
                raise self.error(f"{name}[{key[: self._max_text]!r}]", f"unexpected {type(element).__name__}")
        return {key: kind(element) for key, element in value.items()}

    def array(self, name: str, dtype: np.dtype[Any], max_items: int, exactly: int | None = None) -> npt.NDArray[Any]:
        raw = self.take(name, bytes)
        items, rest = divmod(len(raw), dtype.itemsize)
        if rest:
            raise self.error(name, f"{len(raw)} bytes are no whole number of {dtype.itemsize}-byte items")
        if items > max_items:
            raise SizeLimitError(self.path + name, f"{items:,} items; at most {max_items:,} are read")
        if exactly is not None and items != exactly:
            raise self.error(name, f"{items} items where token_ids has {exactly}")
        return np.frombuffer(raw, dtype=dtype)

    def bits(self, name: str, length: int) -> npt.NDArray[np.bool_]:
        raw = self.take(name, bytes)
        if len(raw) != (length + 7) // 8:
            raise self.error(name, f"{len(raw)} bytes of packed bits for {length} tokens")
        return np.unpackbits(np.frombuffer(raw, dtype=np.uint8), count=length).astype(np.bool_)

    def runs(self, name: str, length: int) -> tuple[list[int], list[int]]:
        flat = self.take(name, list)
        if len(flat) % 2 or not all(type(n) is int and 0 <= n < 2**62 for n in flat):
            raise self.error(name, "expected [value, run length, ...] of non-negative integers")
        values, runs = flat[0::2], flat[1::2]
        if sum(runs) != length or 0 in runs:
            raise self.error(name, f"runs {runs[:8]} do not cover {length} tokens")
        return values, runs
