import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from rollout.engines.vllm_output import FlatLogprobs, WeightVersionSpan, to_completion, to_spans
from shared.errors import EngineError
from shared.types import VersionSpan


@dataclass
class Flat:
    token_ids: list[int]
    logprobs: list[float]


@dataclass
class Span:
    version: str
    start: int
    end: int


def one_span() -> list[WeightVersionSpan] | None:
    return [Span("4", 0, 3)]


@dataclass
class Output:
    token_ids: Sequence[int] = field(default_factory=lambda: [7, 8, 9])
    logprobs: FlatLogprobs | None = field(default_factory=lambda: Flat([7, 8, 9], [-0.5, -1.0, 0.0]))
    finish_reason: str | None = "stop"
    weight_versions: list[WeightVersionSpan] | None = field(default_factory=one_span)
    index: int = 0


def test_a_finished_output_becomes_arrays_with_the_versions_that_drew_them() -> None:
    completion = to_completion(Output(), "request 1")
    assert completion.token_ids.tolist() == [7, 8, 9]
    assert completion.behavior_logprobs.tolist() == [-0.5, -1.0, 0.0]
    assert completion.versions == (VersionSpan(4, 0, 3),)
    assert completion.finish_reason == "stop"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -9999.0, 0.1])
def test_a_log_prob_that_cannot_be_true_is_refused_and_names_the_request(value: float) -> None:
    with pytest.raises(EngineError, match=r"request 1: .* for token 1"):
        to_completion(Output(logprobs=Flat([7, 8, 9], [-0.5, value, -1.0])), "request 1")


@pytest.mark.parametrize("logprobs", [None, Flat([7, 8], [-1.0, -1.0]), Flat([7, 8, 5], [-1.0, -1.0, -1.0])])
def test_log_probs_of_other_tokens_than_the_drawn_ones_are_refused(logprobs: Flat | None) -> None:
    with pytest.raises(EngineError, match="one log-prob for every sampled token"):
        to_completion(Output(logprobs=logprobs), "request 1")


@pytest.mark.parametrize("reason", [None, "abort", "error", "repetition"])
def test_an_output_that_did_not_finish_as_it_should_is_refused(reason: str | None) -> None:
    with pytest.raises(EngineError, match="request 1"):
        to_completion(Output(finish_reason=reason), "request 1")


def test_an_empty_completion_has_no_spans() -> None:
    empty = Output(token_ids=[], logprobs=Flat([], []), weight_versions=[])
    assert to_completion(empty, "request 1").versions == ()
    assert to_spans(None, 0, "request 1") == ()


def test_one_token_has_one_span() -> None:
    assert to_spans([Span("0", 0, 1)], 1, "request 1") == (VersionSpan(0, 0, 1),)


def test_a_switch_splits_the_completion_where_it_happened() -> None:
    spans = to_spans([Span("3", 0, 2), Span("4", 2, 2), Span("5", 2, 6)], 6, "request 1")
    assert spans == (VersionSpan(3, 0, 2), VersionSpan(5, 2, 6))


@pytest.mark.parametrize(
    "spans",
    [
        None,
        [],
        [Span("1", 0, 2)],
        [Span("1", 1, 3)],
        [Span("1", 0, 1), Span("2", 2, 3)],
        [Span("1", 0, 2), Span("2", 1, 3)],
        [Span("1", 0, 4)],
    ],
)
def test_versions_that_leave_a_token_out_are_refused(spans: list[WeightVersionSpan] | None) -> None:
    with pytest.raises(EngineError, match="do not cover its 3 tokens"):
        to_spans(spans, 3, "request 1")


@pytest.mark.parametrize("label", ["default", "-1", "", "1.0"])
def test_a_label_that_is_no_policy_version_is_refused(label: str) -> None:
    with pytest.raises(EngineError, match="not a policy_version"):
        to_spans([Span(label, 0, 1)], 1, "request 1")
