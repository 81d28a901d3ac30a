"""How many rollout servers the learner could use."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.control_plane.autoscale import Demand, demand_of, desired_rollout_servers
from services.status import Member, RunStatus
from shared.budgets import budgets
from shared.config import Config, load_config
from shared.control import Latest
from shared.errors import ConfigError
from shared.stream import Backlog
from tests.services.rows import step

WISHES = (b'{"max_staleness": 1}', b'{"max_bytes": 100000000}', b"")
BALANCED = Demand(phase="running", paused=False, servers=4, wait_s=5, work_s=95, ready=40, credit=160)


def desired(least: int = 1, most: int = 16, **changes: object) -> int:
    return desired_rollout_servers(replace(BALANCED, **changes), least, most)  # type: ignore[arg-type]


def test_a_learner_in_balance_keeps_what_it_has() -> None:
    assert desired() == 4
    assert desired(wait_s=10, work_s=90) == 4
    assert desired(wait_s=0, work_s=100, ready=100) == 4
    assert desired(wait_s=0, work_s=0) == 4, "nothing is known yet"


@pytest.mark.parametrize(
    ("wait_s", "work_s", "wanted"), [(20, 80, 5), (40, 60, 7), (50, 50, 8), (90, 10, 8), (9, 0, 8)]
)
def test_a_learner_that_waits_gets_what_would_fill_its_time_but_at_most_twice_as_many(
    wait_s: float, work_s: float, wanted: int
) -> None:
    assert desired(wait_s=wait_s, work_s=work_s) == wanted


def test_groups_that_pile_up_behind_a_learner_that_never_waits_are_too_many_servers() -> None:
    found = [desired(wait_s=0, work_s=100, ready=150, servers=servers) for servers in (4, 16, 1)]
    assert found == [3, 12, 1]
    assert desired(wait_s=5.0, work_s=95.0, ready=150) == 4, "it waits now and then: no more than it needs"


def test_a_learner_that_waits_because_less_is_wanted_ahead_gets_nobody_for_it() -> None:
    assert desired(wait_s=50, work_s=50, narrowed=True) == 4
    assert desired(wait_s=0, work_s=100, ready=150, narrowed=True) == 3


def test_the_end_of_the_run_needs_nobody_and_a_pause_changes_nothing() -> None:
    assert [desired(phase=phase, least=2) for phase in ("finished", "failed")] == [0, 0]
    assert desired(phase="running", paused=True, wait_s=90, work_s=10) == 4
    assert desired(phase="stopped", wait_s=90, work_s=10) == 4
    assert desired(phase="starting", servers=0) == 1, "somebody has to begin"


@given(
    seen=st.builds(
        Demand,
        phase=st.sampled_from(["starting", "running", "paused", "finished", "failed", "stopped"]),
        paused=st.booleans(),
        servers=st.integers(0, 2000),
        wait_s=st.floats(0, 1e9),
        work_s=st.floats(0, 1e9),
        ready=st.integers(0, 10**9),
        credit=st.integers(1, 10**9),
    ),
    least=st.integers(1, 64),
    more=st.integers(0, 64),
)
def test_whatever_is_seen_the_number_is_within_its_bounds(seen: Demand, least: int, more: int) -> None:
    found = desired_rollout_servers(seen, least, least + more)
    assert found == 0 if seen.phase in ("finished", "failed") else least <= found <= least + more


@given(work=st.floats(1, 100), share=st.floats(0.0, 0.9), servers=st.integers(1, 8))
def test_followed_again_and_again_it_comes_to_rest_where_the_learner_hardly_waits(
    work: float, share: float, servers: int
) -> None:
    """A learner that `need` servers would just keep busy: fewer make it wait in proportion."""
    need = servers / (1 - share)
    seen = replace(BALANCED, servers=servers)
    for _ in range(12):
        waits = max(0.0, work * (need / seen.servers - 1))
        wanted = desired_rollout_servers(replace(seen, wait_s=waits, work_s=work, ready=0), 1, 1000)
        if wanted == seen.servers:
            break
        seen = replace(seen, servers=wanted)
    else:
        raise AssertionError("it does not come to rest")
    assert math.floor(0.9 * need) <= seen.servers <= math.ceil(need)


def status(state: str, since: float = 100.0, servers: int = 2) -> RunStatus:
    members = [Member(f"rollout:r{i}", "rollout", True, {"state": "generating groups"}) for i in range(servers)]
    members += [
        Member("rollout:dead", "rollout", False, {}),
        Member("learner", "learner", True, {"state": state, "since": since}),
    ]
    backlog = Backlog(groups=90, unapplied=70, leased=10, bytes=1, appended=500, dead_letters=0)
    return RunStatus("run", "running", "", Latest(3, 2, 3), tuple(members), backlog, None, (), (), False, ())


def test_the_demand_is_what_the_newest_steps_and_the_living_say(config: Config) -> None:
    rows = [step(number, wait_s=1.0, compute_s=2.0, publish_s=0.5, at=100.0 + number) for number in range(30)]
    seen = demand_of(status("training step 31"), rows, config, budgets(config, b""), now=500.0)
    assert seen == Demand("running", False, 2, 20.0, 50.0, 70, 5 * 32)


def test_the_credit_is_what_is_wanted_now(config: Config) -> None:
    found = [demand_of(status("training"), [], config, budgets(config, wish), now=1.0) for wish in WISHES]
    assert [(seen.credit, seen.narrowed) for seen in found] == [(2 * 32, True), (5 * 32, True), (5 * 32, False)]


def test_a_wait_that_no_step_has_ended_counts_too(config: Config) -> None:
    rows = [step(1, wait_s=0.0, compute_s=2.0, publish_s=0.0, at=100.0)]
    assert (
        demand_of(status("waiting for groups (3 of 32)"), rows, config, budgets(config, b""), now=160.0).wait_s == 60.0
    )
    assert (
        demand_of(
            status("waiting for groups (0 of 32)", since=90.0), [], config, budgets(config, b""), now=100.0
        ).wait_s
        == 10.0
    )
    assert demand_of(status("training step 2"), rows, config, budgets(config, b""), now=160.0).wait_s == 0.0
    assert demand_of(status("training step 2"), [{"step": 1}], config, budgets(config, b""), now=160.0).work_s == 0.0, (
        "another release's row"
    )


def test_bounds_that_cross_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"least_servers is 5; it must be at most control_plane.most_servers"):
        load_config(None, ["control_plane.least_servers=5", "control_plane.most_servers=4"], {})
