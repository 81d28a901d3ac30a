"""From vLLM's output objects to completions. Pure: nothing of vLLM is imported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import numpy as np

from shared.errors import EngineError
from shared.types import Completion, FinishReason, Float32Array, VersionSpan

# Some layers of vLLM write this where a log-prob is missing, NaN or -inf.
MISSING_LOGPROB = -9999.0
FINISH_REASONS = ("stop", "length")  # an aborted completion ended for reasons of ours, not its own


class FlatLogprobs(Protocol):
    """One entry per token when `logprobs=0` (the sampled token's only)."""

    token_ids: list[int]
    logprobs: list[float]


class WeightVersionSpan(Protocol):
    """Tokens [start, end) were drawn by the weights labelled `version`."""

    version: str
    start: int
    end: int


class Output(Protocol):
    """The parts of `vllm.outputs.CompletionOutput` that are read."""

    index: int
    token_ids: Sequence[int]
    logprobs: FlatLogprobs | None
    finish_reason: str | None
    weight_versions: list[WeightVersionSpan] | None


def to_completion(output: Output, request: str) -> Completion:
    """One finished output as a completion.

    Raises:
        EngineError: names the request; log-probs that are not usable, versions that leave a gap, or an
            output that did not finish.

    """
    if output.finish_reason not in FINISH_REASONS:
        raise EngineError(f"{request}: the engine ended a completion with reason {output.finish_reason!r}")
    token_ids = np.array(output.token_ids, dtype=np.int32)
    return Completion(
        token_ids=token_ids,
        behavior_logprobs=sampled_logprobs(output.logprobs, output.token_ids, request),
        versions=to_spans(output.weight_versions, len(token_ids), request),
        finish_reason=cast(FinishReason, output.finish_reason),
    )


def sampled_logprobs(logprobs: FlatLogprobs | None, tokens: Sequence[int], request: str) -> Float32Array:
    """Log-probs of `tokens`, [T], after checking that they are those tokens' and usable."""
    if logprobs is None or list(logprobs.token_ids) != list(tokens):
        raise EngineError(f"{request}: the engine did not return one log-prob for every sampled token")
    return check_logprobs(np.array(logprobs.logprobs, dtype=np.float32), request)


def check_logprobs(values: Float32Array, request: str) -> Float32Array:
    """Pass usable log-probs on; refuse NaN, infinities, the missing mark and probabilities above 1."""
    usable = (values > MISSING_LOGPROB) & (values <= 1e-3)  # False for NaN
    if not usable.all():
        at = int(np.argmin(usable))
        raise EngineError(f"{request}: the engine returned log-prob {values[at]} for token {at}")
    return values


def to_spans(spans: Sequence[WeightVersionSpan] | None, length: int, request: str) -> tuple[VersionSpan, ...]:
    """VLLM's labelled spans as version spans that cover [0, length) without gap."""
    found = tuple(VersionSpan(to_version(s.version, request), s.start, s.end) for s in spans or ())
    found = tuple(span for span in found if span.end > span.start)
    edges = [0, *(span.end for span in found)]
    if edges[-1] != length or any(s.start != edge for s, edge in zip(found, edges, strict=False)):
        raise EngineError(f"{request}: versions {found} do not cover its {length} tokens")
    return found


def to_version(label: str, request: str) -> int:
    """The policy_version behind vLLM's free-text label."""
    if not label.isdecimal():
        raise EngineError(f"{request}: the engine's weight version is {label!r}, not a policy_version")
    return int(label)
