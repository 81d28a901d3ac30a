"""What was dropped against what was trained on."""

import pytest

from services.history import History, Row
from services.survivorship import survivorship, told
from tests.services.rows import dropped, step


def history(rows: list[Row], gone: list[Row]) -> History:
    return History(rows, 0, [], gone, [], 0)


def test_lengths_and_rewards_of_dropped_and_trained_groups_stand_side_by_side() -> None:
    rows = [
        step(1, [0, 1], length_mean=10.0, reward_mean=0.5, trajectories=8),
        step(2, [2], length_mean=20.0, reward_mean=0.8, trajectories=4),
        step(3, [9], skipped="non-finite loss", length_mean=900.0),
    ]
    gone = [
        dropped(3, length_mean=30.0, reward_mean=0.1, staleness=5),
        dropped(4, length_mean=50.0, reward_mean=0.3, staleness=7),
        dropped(5, "undecodable", length_mean=None, reward_mean=None),
        dropped(2, length_mean=900.0),  # on an abandoned branch; applied later
    ]
    found = survivorship(history(rows, gone))
    assert found["trained"] == {
        "groups": 3,
        "length_mean": pytest.approx(40 / 3),
        "reward_mean": pytest.approx(0.6),
    }
    assert found["dropped"] == {
        "groups": 3,
        "length_mean": 40.0,
        "reward_mean": pytest.approx(0.2),
        "staleness_mean": 6.0,
    }
    assert found["dropped_by_reason"]["undecodable"]["length_mean"] is None
    assert found["dropped_by_reason"]["too_stale"]["groups"] == 2
    assert told(found) == "length 40.0 against 13.3, reward 0.200 against 0.600"


def test_a_run_that_dropped_nothing_has_nothing_to_compare() -> None:
    found = survivorship(history([step(1, [0])], []))
    assert (found["dropped"]["groups"], found["dropped_by_reason"], told(found)) == (0, {}, "")
    assert told(survivorship(history([], []))) == told({}) == ""
