"""A trajectory while it grows: what policy and environment have said after the prompt, token by token."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from shared.types import (
    BoolArray,
    Completion,
    FinishReason,
    Float32Array,
    Int32Array,
    SamplingSettings,
    Source,
    Trajectory,
    UInt8Array,
    VersionSpan,
)


@dataclass(frozen=True, slots=True)
class Transcript:
    """Tokens after the prompt, in the order in which they were said. Grows by copies."""

    token_ids: Int32Array  # [T]
    behavior_logprobs: Float32Array  # [T], nats; 0 where source is not POLICY
    source: UInt8Array  # [T], values of Source
    versions: tuple[VersionSpan, ...]  # cover [0, T) without gap
    finish_reason: FinishReason  # of the policy's last turn; 'length': the token budget is spent
    turns: tuple[slice, ...]  # of the policy, or of the expert in its place

    @property
    def last_turn(self) -> Int32Array:
        """The tokens that the policy, or the expert, said last."""
        return self.token_ids[self.turns[-1]] if self.turns else self.token_ids

    def with_completion(self, completion: Completion, source: Source = Source.POLICY) -> Transcript:
        """The policy has said something, or an expert in its place."""
        start, added = len(self.token_ids), len(completion.token_ids)
        spans = tuple(VersionSpan(s.policy_version, s.start + start, s.end + start) for s in completion.versions)
        return Transcript(
            token_ids=np.concatenate((self.token_ids, completion.token_ids)).astype(np.int32, copy=False),
            behavior_logprobs=np.concatenate((self.behavior_logprobs, completion.behavior_logprobs)),
            source=np.concatenate((self.source, np.full(added, source, np.uint8))),
            versions=_joined(self.versions + spans),
            finish_reason=completion.finish_reason,
            turns=(*self.turns, slice(start, start + added)),
        )

    def with_environment(self, token_ids: Int32Array) -> Transcript:
        """The environment has answered. Its tokens bear the version that was answered: nothing else drew them."""
        start, end = len(self.token_ids), len(self.token_ids) + len(token_ids)
        span = VersionSpan(self.versions[-1].policy_version, start, end)
        return replace(
            self,
            token_ids=np.concatenate((self.token_ids, token_ids)).astype(np.int32, copy=False),
            behavior_logprobs=np.concatenate((self.behavior_logprobs, np.zeros(len(token_ids), np.float32))),
            source=np.concatenate((self.source, np.full(len(token_ids), Source.ENVIRONMENT, np.uint8))),
            versions=_joined((*self.versions, span)),
        )

    def finish(self, reward: float, rewards: dict[str, float], sampling: SamplingSettings) -> Trajectory:
        """The trajectory with its reward; all but the environment's tokens are trained."""
        loss_mask: BoolArray = self.source != Source.ENVIRONMENT
        return Trajectory(
            token_ids=self.token_ids,
            behavior_logprobs=self.behavior_logprobs,
            loss_mask=loss_mask,
            source=self.source,
            versions=self.versions,
            reward=reward,
            rewards=rewards,
            finish_reason=self.finish_reason,
            sampling=sampling,
        )


EMPTY = Transcript(
    token_ids=np.zeros(0, np.int32),
    behavior_logprobs=np.zeros(0, np.float32),
    source=np.zeros(0, np.uint8),
    versions=(),
    finish_reason="stop",
    turns=(),
)


def _joined(spans: tuple[VersionSpan, ...]) -> tuple[VersionSpan, ...]:
    """Neighbours of one version become one span; empty spans go."""
    joined: list[VersionSpan] = []
    for span in spans:
        if span.start == span.end:
            continue
        if joined and joined[-1].policy_version == span.policy_version:
            joined[-1] = VersionSpan(span.policy_version, joined[-1].start, span.end)
        else:
            joined.append(span)
    return tuple(joined)
