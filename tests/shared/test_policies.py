"""Admission policies: pure answers, knobs by name, and what is refused."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.config import load_config
from shared.errors import ConfigError
from shared.policies import (
    SELECT,
    Allowance,
    Trust,
    Waiting,
    chosen,
    ess,
    keep,
    mixed,
    newest,
    oldest,
    stalest,
    too_stale,
)


def waiting(*staleness: int) -> list[Waiting]:
    return [Waiting(versions, 0) for versions in staleness]


def test_oldest_takes_what_came_first_stalest_what_has_least_time_newest_what_has_most() -> None:
    groups = waiting(3, 3, 1, 1, 2)
    assert oldest(groups, 2) == [0, 1]
    assert stalest(groups, 3) == [0, 1, 4]
    assert stalest([Waiting(9, 9), Waiting(1, 0)], 1) == [1]
    assert newest(groups, 2) == [2, 3]
    assert newest(groups, 4) == [1, 2, 3, 4]
    assert newest([Waiting(9, 9), Waiting(1, 0)], 1) == [0], "a lag that was asked for makes no group old"


def test_mixed_takes_its_share_of_the_newest_and_the_rest_in_order_of_arrival() -> None:
    groups = waiting(4, 4, 3, 2, 1, 0)
    assert mixed(groups, 4, newest_share=0.5) == [0, 1, 4, 5]
    assert mixed(groups, 3, newest_share=0.0) == oldest(groups, 3)
    assert mixed(groups, 3, newest_share=1.0) == newest(groups, 3)


@pytest.mark.parametrize("name", SELECT)
@given(groups=st.lists(st.builds(Waiting, st.integers(0, 9), st.integers(0, 3)), max_size=12), count=st.integers(1, 12))
def test_every_selection_gives_a_whole_batch_of_different_groups_in_order_of_arrival(
    name: str, groups: Sequence[Waiting], count: int
) -> None:
    places = SELECT[name](groups, count)
    assert places == sorted(set(places))
    assert len(places) == min(count, len(groups))
    assert set(places) <= set(range(len(groups)))


@given(shares=st.floats(0, 1), groups=st.integers(1, 20), count=st.integers(1, 20))
def test_mixed_always_has_room_for_the_first_unless_all_are_to_be_new(shares: float, groups: int, count: int) -> None:
    places = mixed(waiting(*range(groups, 0, -1)), min(count, groups), newest_share=shares)
    assert 0 in places or round(shares * min(count, groups)) == min(count, groups)


def test_too_stale_looks_beyond_lag_and_bound_and_slack_and_keep_at_nothing() -> None:
    assert too_stale(Waiting(6, 2), 4) == ""
    assert too_stale(Waiting(7, 2), 4) == "too_stale"
    assert too_stale(Waiting(7, 2), 4, slack=1) == ""
    assert keep(Waiting(1000, 0), 0) == ""


def test_ess_gives_credit_as_the_data_bear_it() -> None:
    def after(credit: int, token_ess: float | None) -> int:
        return ess(Trust(5, credit, token_ess), target=0.9).versions

    assert after(5, 0.95) == 5, "never more than max_staleness allows"
    assert after(5, 0.89) == 2
    assert after(2, 0.95) == 3
    assert after(1, 0.1) == 1, "without any credit nobody would go on"
    assert after(4, math.nan) == 2, "what is not known is not trusted"
    assert after(3, None) == 3
    assert ess(Trust(5, 5, 0.95), in_order=True) == Allowance(5, in_order=True)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "admission.select=freshest",
            "admission.select 'freshest' is not known; known: oldest, stalest, newest, mixed",
        ),
        ("admission.select={name: mixed, newest_share: 2}", "'mixed': newest_share: .*less than or equal to 1, not 2"),
        ("admission.admit={name: ess, target: .nan}", "target"),
        ("admission.admit={name: credit, target: 1}", "'credit' has no knob 'target'; it has: none"),
        ("admission.evict={name: too_stale, slack: much}", "slack: .*valid integer.*'much'"),
        ("admission.window=1", r"admission.window"),
    ],
)
def test_what_cannot_be_is_refused_by_its_key(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, [override], {})


def test_a_policy_is_chosen_by_its_name_alone_or_with_its_knobs() -> None:
    policy = load_config(None, ["admission.select={name: mixed, newest_share: 1}", "admission.evict=keep"], {})
    found = policy.admission.policy
    assert found.chooses
    assert found.select(waiting(5, 1), 1) == [1]
    assert found.evict(Waiting(99, 0), 1) == ""
    plain = load_config(None, [], {}).admission.policy
    assert not plain.chooses
    assert load_config(None, [], {}).admission.batches_held == 1
    assert load_config(None, ["admission.select=newest"], {}).admission.batches_held == 5
    assert plain.admit(Trust(5, 3, 0.0)) == Allowance(5, in_order=False)
    assert chosen("select", "oldest", {})(waiting(1), 1) == [0]
