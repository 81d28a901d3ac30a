"""Made-up groups, well-formed or poisoned. Pure functions of the prompt index and what is asked for.

The prompt spells its index, so that whatever trains on a group can be traced back to it. Completion g of a group
repeats token g % 2 and is rewarded with it; every token claims a log-prob of -1 nat.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np

from shared.codec import SCHEMA, encode_group
from shared.types import Group, Int32Array, SamplingSettings, Source, Trajectory, VersionSpan, group_id_for

PROMPT_TOKENS = 4
BASE = 256  # tokens that every model has; four of them spell 2^32 indices
LOGPROB = -1.0  # nats

POISONS = ("truncated", "wrong_version", "wrong_shapes", "nan", "huge_length")


@dataclass(frozen=True)
class Shape:
    """What every group looks like."""

    group_size: int
    tokens: int  # of a completion
    poison_every: int = 0  # every so many indices one is poisoned; 0: none
    poisons: tuple[str, ...] = POISONS  # in turn

    def poison_of(self, index: int) -> str:
        """The poison of an index, '' for a good group."""
        if not self.poison_every or index % self.poison_every != self.poison_every - 1:
            return ""
        return self.poisons[index // self.poison_every % len(self.poisons)]


def prompt_of(index: int) -> Int32Array:
    """The prompt of an index: its digits in base 256, lowest first, [4]."""
    return np.asarray([index // BASE**digit % BASE for digit in range(PROMPT_TOKENS)], dtype=np.int32)


def make_group(run_id: str, index: int, version: int, server_id: str, shape: Shape, at: float) -> Group:
    """The group of a prompt index, as if `version` had drawn it at `at` (unix seconds)."""
    return Group(
        group_id=group_id_for(run_id, index),
        prompt_index=index,
        environment="load",
        prompt_ids=prompt_of(index),
        trajectories=tuple(_trajectory(g % 2, version, shape.tokens) for g in range(shape.group_size)),
        server_id=server_id,
        lag=0,
        started_at=at,
        completed_at=at,
        trace_id="",
    )


def poisoned(group: Group, poison: str) -> bytes:
    """The payload of a group with something wrong in it."""
    good = encode_group(group)
    if poison == "truncated":
        return good[: len(good) // 2]
    frame: dict[str, Any] = msgpack.unpackb(good, raw=False)
    first = frame["trajectories"][0]
    if poison == "wrong_version":
        frame["schema"] = [SCHEMA[0] + 1, 0]
    elif poison == "wrong_shapes":
        first["behavior_logprobs"] += b"\0\0\0\0"
    elif poison == "nan":
        values = np.frombuffer(first["behavior_logprobs"], dtype="<f4").copy()
        values[-1] = np.nan
        first["behavior_logprobs"] = values.tobytes()
    elif poison == "huge_length":  # an array that says that it has 4 GiB, and has four bytes
        return b"\x81" + bytes(msgpack.packb("prompt_ids")) + b"\xc6\xff\xff\xff\xff" + b"\0\0\0\0"
    else:
        raise ValueError(f"poison {poison!r} is none of {POISONS}")
    return bytes(msgpack.packb(frame, use_bin_type=True))


def _trajectory(token: int, version: int, length: int) -> Trajectory:
    return Trajectory(
        token_ids=np.full(length, token, dtype=np.int32),
        behavior_logprobs=np.full(length, LOGPROB, dtype=np.float32),
        loss_mask=np.ones(length, dtype=np.bool_),
        source=np.full(length, Source.POLICY, dtype=np.uint8),
        versions=(VersionSpan(version, 0, length),),
        reward=float(token),
        rewards={"token": float(token)},
        finish_reason="stop",
        sampling=SamplingSettings(max_tokens=length),
    )
