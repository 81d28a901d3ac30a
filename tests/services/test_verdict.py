"""Whether the batch may be trusted: words, levels, limits against the run's own floor."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.verdict import Verdict, figure, lost_by, verdict
from tests.services.rows import Row, step
from tests.services.run_status import LEARNER, ROLLOUT, status


def plain(**changes: Any) -> Row:
    """A step without a floor of its own."""
    return step(1, **{"floor_token_ess": None, "floor_mean_nats": None, "by_server": {}, **changes})


VERDICTS = [
    ({"phase": "finished", "reason": "done"}, "good", "The run is finished: done."),
    ({"phase": "failed", "reason": "no groups"}, "bad", "The run has failed: no groups."),
    ({"phase": "stopped"}, "idle", "The run was stopped. It can be resumed."),
    ({"members": (replace(LEARNER, alive=False), ROLLOUT)}, "bad", "The learner sends no heartbeat any more"),
    ({"paused": True}, "idle", "Paused by the operator"),
    ({"last": None}, "idle", "Starting: learner (waiting for groups); rollout:r0 (loading vLLM)."),
    ({"last": None, "members": ()}, "idle", "Starting: neither learner nor rollout server has reported yet."),
    ({"last": None, "members": (LEARNER,)}, "idle", "Starting: learner (waiting for groups); no rollout server is"),
    ({"members": (LEARNER,)}, "bad", "No rollout server is alive"),
    (
        {"members": (LEARNER, ROLLOUT, replace(ROLLOUT, component="rollout:r1", alive=False))},
        "warn",
        "rollout:r1 sent no",
    ),
    ({"last": plain(skipped="non-finite loss")}, "bad", "not trained on: non-finite loss"),
    ({"last": {"step": 1}}, "warn", "Training, but the newest step carries no token_ess."),
    ({"last": plain(token_ess=0.3)}, "bad", "Do not lean on this data: ESS .30."),
    ({"last": plain(token_ess=0.8)}, "warn", "With care: ESS .80."),
    ({"last": plain(token_ess=0.93, staleness_max=4)}, "good", "Trusted: ESS .93; staleness 4."),
]


@pytest.mark.parametrize(("changes", "level", "words"), VERDICTS)
def test_it_says_the_most_important_thing(changes: dict[str, Any], level: str, words: str) -> None:
    found = verdict(status(**changes))
    assert found.level == level
    assert words in found.sentence


def judged(floor: float | None = None, **changes: Any) -> Verdict:
    return verdict(status(last=plain(floor_token_ess=floor, floor_mean_nats=floor and 0.02, **changes)))


def test_with_a_floor_it_is_said_beside_the_ess() -> None:
    assert judged(0.999, token_ess=0.93, staleness_max=4).sentence == "Trusted: ESS .93; staleness 4, floor .999."


@pytest.mark.parametrize(
    ("floor", "ess", "level"),
    [
        (0.999, 0.91, "good"),
        (0.999, 0.89, "warn"),
        (0.999, 0.49, "bad"),
        (0.9999999, 0.91, "good"),  # a better floor than .999 asks for no more
        (0.992, 0.81, "good"),  # a worse one for less
        (0.992, 0.79, "warn"),
        (0.992, 0.37, "bad"),
    ],
)
def test_what_is_asked_of_the_ess_depends_on_the_runs_own_floor(floor: float, ess: float, level: str) -> None:
    assert judged(floor, token_ess=ess).parts["ess"].level == level


@given(st.floats(0.01, 1), st.floats(0.01, 1), st.floats(0.01, 1))
def test_more_ess_is_never_trusted_less_and_a_worse_floor_never_asks_for_more(a: float, b: float, floor: float) -> None:
    order = ["bad", "warn", "good"]
    low, high = sorted((a, b))

    def level(ess: float, at: float) -> int:
        return order.index(judged(at, token_ess=ess).parts["ess"].level)

    assert level(low, floor) <= level(high, floor)
    assert level(a, floor) >= level(a, 1.0)


def test_a_low_floor_is_blamed_on_the_numerics_not_on_staleness() -> None:
    found = judged(0.95, token_ess=0.94)
    assert found.parts["ess"].level == "good"
    assert (found.level, found.sentence) == (
        "warn",
        "Engine and learner differ on the same weights by 0.02 nats a token: floor .95, whatever the staleness.",
    )
    assert judged(0.8, token_ess=0.94).level == "bad"


def test_without_staleness_0_the_floor_is_what_the_worst_living_server_proved() -> None:
    servers = [
        replace(ROLLOUT, component=f"rollout:r{i}", values={"floor_token_ess": e}) for i, e in enumerate((1, 0.98))
    ]
    gone = replace(ROLLOUT, component="rollout:r9", alive=False, values={"floor_token_ess": 0.1})
    assert verdict(status(last=plain(), members=(LEARNER, *servers, gone))).parts["floor"].numbers["token_ess"] == 0.98


@pytest.mark.parametrize("said", [-1e308, 7.0, math.inf, math.nan, "1", None, [1]])
def test_a_server_that_says_nonsense_of_its_floor_is_not_heard(said: Any) -> None:
    liar = replace(ROLLOUT, values={"floor_token_ess": said, "floor_mean_nats": said})
    assert "floor" not in verdict(status(last=plain(), members=(LEARNER, liar))).parts


def test_concentration_names_its_bucket_and_its_server() -> None:
    part = {"tokens": 100, "token_ess": 0.99}
    found = judged(
        token_ess=0.45,
        top_1_percent_mass=0.61,
        by_staleness={"0": part, "3-4": part, "16+": {"tokens": 40, "token_ess": 0.1}},
    )
    assert found.level == "bad"
    assert found.sentence == "Ratios concentrate: 1 % of the tokens carry 61 % of the weight, mostly staleness 16+."
    row = plain(top_1_percent_mass=0.2, by_server={"r1": part, "r3": {"tokens": 5, "token_ess": 0.2}})
    found = verdict(status(last=row))
    assert (found.level, found.parts["concentration"].numbers["mostly"]) == ("warn", "server r3")


@given(st.lists(st.lists(st.floats(0.01, 100), min_size=1, max_size=6), min_size=1, max_size=5))
def test_what_the_parts_lost_adds_up_to_what_the_whole_lost(ratios: list[list[float]]) -> None:
    def ess(w: list[float]) -> float:
        return sum(w) ** 2 / (len(w) * sum(x * x for x in w))

    total = sum(map(sum, ratios))
    parts = {
        str(i): {"tokens": len(w), "token_ess": ess(w), "weight_share": sum(w) / total} for i, w in enumerate(ratios)
    }
    whole = 1 / ess([w for part in ratios for w in part]) - 1
    assert sum(lost_by(parts).values()) == pytest.approx(whole, rel=1e-6, abs=1e-9)


def test_a_bucket_whose_mean_ratio_is_large_is_blamed_although_its_own_ess_is_high() -> None:
    fresh = {"tokens": 90, "token_ess": 0.99, "weight_share": 0.3}
    parts = {"0": fresh, "16+": {"tokens": 10, "token_ess": 0.99, "weight_share": 0.7}}
    found = lost_by(parts)
    assert found["16+"] > 5 * found["0"]


def test_nobody_is_blamed_where_nobody_stands_out() -> None:
    same = {"tokens": 100, "token_ess": 0.5}
    found = judged(token_ess=0.5001, by_staleness={"1": same, "2": same})
    assert found.parts["ess"].numbers["mostly"] == ""
    assert judged(token_ess=0.5001, by_staleness={"1": same}).parts["ess"].numbers["mostly"] == ""


def test_one_batch_does_not_turn_it_and_skipped_ones_do_not_count() -> None:
    rows = [step(n, token_ess=0.95) for n in range(1, 8)]
    assert verdict(status(recent=(*rows, step(8, token_ess=0.2)), last=step(8, token_ess=0.2))).level == "good"
    skipped = step(9, token_ess=math.nan, skipped="non-finite")
    assert verdict(status(recent=(*rows, skipped))).parts["ess"].numbers["token_ess"] == 0.95


def test_staleness_says_what_most_of_it_is() -> None:
    part = judged(staleness_max=6, lag_mean=4.0, flight_mean=0.5, queue_mean=1.0).parts["staleness"]
    assert part.sentence == "The oldest token is 6 versions old, mostly lag."


def test_not_finite_is_never_trusted() -> None:
    assert judged(token_ess=math.nan).level == "warn"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.93, ".93"), (0.9993, ".9993"), (0.99934, ".9993"), (0.999999999, "1"), (1.0, "1"), (0.5, ".50"), (0, ".00")],
)
def test_an_ess_is_as_short_as_it_says_something(value: float, text: str) -> None:
    assert figure(value) == text


def test_what_is_not_known_is_said_so() -> None:
    assert figure(None) == figure(math.nan) == "unknown"
