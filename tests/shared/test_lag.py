"""Which lag a server is asked for: draws over servers and dwells, schedules, single servers, the control arm."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.config.lag import LagSetting
from shared.lag import Asked, Moment, parse_dwell, resolve

SERVERS = [f"r{i}" for i in range(400)]


def setting(given: Any) -> LagSetting:
    return LagSetting.model_validate(given)


def asked(given: Any, server: str = "r0", version: int = 0, step: int = 0, groups: int = 0, seed: int = 0) -> Asked:
    return resolve(setting(given), server, seed, Moment(version, step, groups))


def test_a_number_is_the_same_for_all_and_holds_for_any_version() -> None:
    assert {asked(8, server, version=version) for server in SERVERS[:9] for version in (0, 7)} == {Asked(8)}


def test_without_a_dwell_every_server_draws_once() -> None:
    drawn = {server: asked("uniform:0:3", server).lag for server in SERVERS}
    assert set(drawn.values()) == {0, 1, 2, 3}
    shares = Counter(drawn.values())
    assert all(70 < shares[lag] < 130 for lag in range(4)), shares
    assert all(asked("uniform:0:3", server, version=99, groups=99).lag == lag for server, lag in drawn.items())
    assert drawn != {server: asked("uniform:0:3", server, seed=1).lag for server in SERVERS}


def test_draws_are_the_same_on_every_machine() -> None:
    """Numbers written down once: another platform or release must draw them too."""
    given = {"lag": "uniform:0:1000", "dwell": "4 versions"}
    assert [asked(given, version=version, seed=7).lag for version in (0, 3, 4, 8)] == [689, 689, 117, 800]


def test_a_dwell_of_versions_ends_with_the_versions_and_holds_for_the_newest_alone() -> None:
    given = {"lag": "uniform:0:1000", "dwell": "4 versions"}
    drawn = [asked(given, version=version, groups=version) for version in range(12)]
    assert [a.lag for a in drawn] == [drawn[4 * (v // 4)].lag for v in range(12)]
    assert len({a.lag for a in drawn}) == 3
    assert [a.version for a in drawn] == list(range(12))


def test_a_dwell_of_groups_ends_with_the_server_s_groups() -> None:
    given = {"lag": "uniform:0:1000", "dwell": "32 groups"}
    drawn = [asked(given, version=groups % 5, groups=groups) for groups in range(96)]
    assert [a.lag for a in drawn] == [drawn[32 * (n // 32)].lag for n in range(96)]
    assert {a.version for a in drawn} == {None}


def test_a_schedule_follows_the_steps_in_the_newest_version() -> None:
    assert [asked("0@0,8@10", version=step, step=step).lag for step in (0, 9, 10, 50)] == [0, 0, 8, 8]
    assert asked("0@0,8@10", version=9, step=9).version == 9, "the next version may ask for another lag"


def test_a_server_s_own_setting_counts_instead() -> None:
    given = {"lag": "uniform:9:16", "control_share": 0.5, "servers": {"r1": 0, "r2": "0@0,4@10"}}
    assert asked(given, "r1", step=50) == Asked(0)
    assert asked(given, "r2", step=50).lag == 4
    assert setting(given).largest == 16


@given(share=st.floats(0.01, 0.99), server=st.sampled_from(SERVERS))
def test_of_dwells_exactly_the_share_is_the_control_arm(share: float, server: str) -> None:
    given = {"lag": 8, "dwell": "3 versions", "control_share": share}
    arms = [asked(given, server, version=3 * dwell + 1) for dwell in range(200)]
    assert {(a.lag, a.arm) for a in arms} <= {(0, "control"), (8, "")}
    assert abs(sum(a.arm == "control" for a in arms) - 200 * share) <= 1


def test_of_servers_about_the_share_is_the_control_arm_for_good() -> None:
    given = {"lag": 8, "control_share": 0.25}
    control = {server for server in SERVERS if asked(given, server).arm}
    assert 70 < len(control) < 130
    assert all(asked(given, server, version=50, groups=50).lag == 0 for server in control)


@pytest.mark.parametrize(
    "text", ["", "8", "versions", "0 versions", "-1 groups", "8 steps", "8 versionss", "1e3 groups"]
)
def test_a_dwell_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a dwell is written as `8 versions` or `32 groups`"):
        parse_dwell(text)
