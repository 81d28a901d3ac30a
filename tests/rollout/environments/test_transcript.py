from __future__ import annotations

import numpy as np

from rollout.environments.transcript import EMPTY
from shared.types import Completion, SamplingSettings, Source, VersionSpan


def said(*spans: tuple[int, int]) -> Completion:
    """A completion of runs (version, length)."""
    ends = np.cumsum([0, *(length for _, length in spans)]).tolist()
    total = ends[-1]
    versions = tuple(VersionSpan(v, start, end) for (v, _), start, end in zip(spans, ends, ends[1:], strict=False))
    return Completion(np.arange(total, dtype=np.int32), np.full(total, -1, dtype=np.float32), versions, "stop")


def test_spans_of_several_turns_cover_the_trajectory_without_gap() -> None:
    transcript = EMPTY.with_completion(said((3, 2), (4, 1))).with_environment(np.asarray([7, 7], dtype=np.int32))
    transcript = transcript.with_completion(said((4, 1), (6, 2)))
    assert transcript.versions == (VersionSpan(3, 0, 2), VersionSpan(4, 2, 6), VersionSpan(6, 6, 8))
    assert transcript.turns == (slice(0, 3), slice(5, 8))
    assert transcript.last_turn.tolist() == [0, 1, 2]


def test_the_environment_s_tokens_are_never_trained_on() -> None:
    transcript = EMPTY.with_completion(said((0, 2))).with_environment(np.asarray([7], dtype=np.int32))
    trajectory = transcript.finish(1.0, {"a": 1.0}, SamplingSettings())
    assert trajectory.loss_mask.tolist() == [True, True, False]
    assert trajectory.source.tolist() == [Source.POLICY, Source.POLICY, Source.ENVIRONMENT]
    assert trajectory.behavior_logprobs.tolist() == [-1, -1, 0]
    assert trajectory.token_ids.dtype == np.dtype(np.int32)
    assert trajectory.behavior_logprobs.dtype == np.dtype(np.float32)
