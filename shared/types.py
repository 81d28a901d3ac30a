"""What travels through the loop. B trajectories, T tokens, G group_size, P prompt tokens.

Arrays are numpy, little-endian, and stay arrays from the engine to the device.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal

import numpy as np
import numpy.typing as npt

from shared.lag import Arm

Int32Array = npt.NDArray[np.int32]
Float32Array = npt.NDArray[np.float32]
UInt8Array = npt.NDArray[np.uint8]
BoolArray = npt.NDArray[np.bool_]

FinishReason = Literal["stop", "length", "environment", "abort"]


class Source(IntEnum):
    """Who wrote a token."""

    POLICY = 0
    ENVIRONMENT = 1
    EXPERT = 2


_EXPERT = int(Source.EXPERT)  # looking it up in the enumeration takes longer than looking at a completion


@dataclass(frozen=True, slots=True)
class VersionSpan:
    """Tokens [start, end) of a completion were drawn by `policy_version`."""

    policy_version: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How tokens are drawn. Only `temperature` may differ from neutral in training data.

    The learner recomputes log-probs as log_softmax(logits / temperature); it cannot know what top-p,
    top-k, min-p or a penalty left out, so `check_trainable` in `rollout.sampling` refuses them.
    """

    temperature: float = 1.0
    max_tokens: int = 16
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    stop_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled continuation, as an engine returns it."""

    token_ids: Int32Array  # [T], the end-of-sequence token included when it was drawn
    behavior_logprobs: Float32Array  # [T], nats, of the distribution that was sampled
    versions: tuple[VersionSpan, ...]  # cover [0, T) without gap
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One completion of a group's prompt with all that training needs of it.

    Tokens after the prompt may come from the policy, from the environment (a tool's answer, the next
    question) or from an expert; only tokens with `loss_mask` are trained on.
    """

    token_ids: Int32Array  # [T], after the prompt
    behavior_logprobs: Float32Array  # [T], nats; 0 where source is not POLICY
    loss_mask: BoolArray  # [T], True = trained token
    source: UInt8Array  # [T], values of Source
    versions: tuple[VersionSpan, ...]  # cover [0, T) without gap
    reward: float
    rewards: dict[str, float]  # named components of the reward
    finish_reason: FinishReason
    sampling: SamplingSettings

    @property
    def length(self) -> int:
        """T, the tokens after the prompt."""
        return len(self.token_ids)

    @property
    def by_expert(self) -> bool:
        """True if an expert, not the policy, wrote what is trained of it."""
        return _EXPERT in self.source.tobytes() and bool((self.source[self.loss_mask] == _EXPERT).any())

    def token_versions(self) -> npt.NDArray[np.int64]:
        """The policy_version of every token, [T]."""
        out = np.empty(self.length, dtype=np.int64)
        for span in self.versions:
            out[span.start : span.end] = span.policy_version
        return out


@dataclass(frozen=True, slots=True)
class Group:
    """The G completions of one prompt, and an expert's where asked for: the unit of delivery, carried whole."""

    group_id: str  # deterministic: the same prompt index of the same run always has the same id
    prompt_index: int
    environment: str
    prompt_ids: Int32Array  # [P]
    trajectories: tuple[Trajectory, ...]  # G of the policy, then those of an expert
    server_id: str
    lag: int  # versions, what the server was asked to serve behind the latest when it took the lease
    started_at: float  # unix seconds: generation began
    completed_at: float  # unix seconds: rewards were in
    trace_id: str
    extensions: dict[str, bytes] = field(default_factory=dict)  # routing replay, images, ...
    arm: Arm = ""  # "control": at lag 0 on purpose, while others lag

    @property
    def own(self) -> tuple[Trajectory, ...]:
        """The policy's own completions: rewards, lengths and advantages of a group are of these alone."""
        return tuple(t for t in self.trajectories if not t.by_expert)

    @property
    def group_size(self) -> int:
        """G, the number of own completions."""
        return len(self.own)


def group_id_for(run_id: str, prompt_index: int) -> str:
    """The id of the group of a prompt: a pure function, so a second append of it can be recognised."""
    return f"{run_id}:{prompt_index}"
