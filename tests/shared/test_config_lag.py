"""The lag setting in the configuration and in Redis: short where it can be, the same wherever it is written."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from shared.config import Config, load_config
from shared.config.lag import LagSetting, from_wish, to_wish
from shared.config.load import dump_config
from shared.errors import ConfigError

WHOLE = "{lag: 'geometric:.25:16', dwell: 4versions, control_share: .25, servers: {r1: 3, r2: {lag: 'choice:0,4'}}}"


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("8", 8),
        ("uniform:0:16", "uniform:0:16"),
        ("{lag: 8}", 8),
        ("{lag: 8, servers: {}}", 8),
        (
            WHOLE,
            {
                "lag": "geometric:0.25:16",
                "dwell": "4 versions",
                "control_share": 0.25,
                "servers": {"r1": 3, "r2": "choice:0,4"},
            },
        ),
    ],
)
def test_a_setting_is_shown_as_short_as_it_can_be_and_read_back(given: str, shown: Any) -> None:
    config = load_config(None, [f"rollout.lag={given}"], {})
    dumped = yaml.safe_load(dump_config(config))
    assert dumped["rollout"]["lag"] == shown
    assert Config.model_validate(dumped) == config
    assert from_wish(to_wish(config.rollout.lag)) == config.rollout.lag


def test_the_dial_s_end_is_what_the_configured_lag_needs_unless_it_is_said() -> None:
    assert load_config(None, [], {}).rollout.largest_lag == 0
    assert load_config(None, [f"rollout.lag={WHOLE}"], {}).rollout.largest_lag == 16
    assert load_config(None, ["rollout.lag=4", "rollout.max_lag=64"], {}).rollout.largest_lag == 64


def test_a_lag_alone_is_set_within_a_longer_setting() -> None:
    config = load_config(None, ["rollout.lag.lag=9", "rollout.lag.control_share=.5"], {})
    assert str(config.rollout.lag) == "9, control arm 0.5 of servers"


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("unif:3", "rollout.lag.lag: a lag is written as 8, uniform:0:16"),
        ("1025", "rollout.lag.lag: a lag is a whole number from 0 to 1,024"),
        ("true", "rollout.lag.lag: a lag is a number or a text such as 8"),
        ("{lag: 3, dwell: 3 versions}", "rollout.lag: dwell is 3 versions, but there is nothing to draw"),
        ("{lag: 'uniform:0:3', dwell: 3}", "rollout.lag.dwell: a dwell is a text such as `8 versions`"),
        ("{lag: 3, sahre: 3}", "rollout.lag.sahre: unknown key; known here: control_share, dwell, lag, servers"),
        ("{servers: {r1: 'uniform:9:3'}}", "rollout.lag.servers.r1.lag: uniform:LOW:HIGH has 9 above 3"),
        ("{control_share: 1}", "rollout.lag.control_share: Input should be less than 1"),
    ],
)
def test_what_cannot_be_is_named_with_its_key(given: str, problem: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_config(None, [f"rollout.lag={given}"], {})
    assert problem in str(refused.value)


def test_a_lag_beyond_the_dial_s_end_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"rollout\.lag asks for up to 9 versions; rollout\.max_lag is 4: raise it"):
        load_config(None, ["rollout.lag=uniform:0:9", "rollout.max_lag=4"], {})


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"1025", b'"x"', b'{"lag": 3, "x": 1}', b"\xff", b"[" * 100_000])
def test_a_damaged_wish_is_none(text: bytes) -> None:
    assert from_wish(text) is None


def test_equal_settings_have_equal_texts() -> None:
    one = LagSetting.model_validate({"servers": {"b": 1, "a": {"lag": "4"}}, "lag": "choice:0*1,4"})
    other = LagSetting.model_validate({"lag": "choice:0,4", "servers": {"a": 4, "b": {"lag": 1, "dwell": None}}})
    assert to_wish(one) == to_wish(other)


def test_a_capped_setting_keeps_dwell_control_arm_and_servers() -> None:
    setting = LagSetting.model_validate(
        {"lag": "choice:0,4*2,16", "dwell": "8 versions", "control_share": 0.25, "servers": {"r1": 12, "r2": 1}}
    )
    capped = setting.capped(3)
    assert (str(capped.form), capped.dwell, capped.control_share, capped.largest) == (
        "choice:0,3*3",
        "8 versions",
        0.25,
        3,
    )
    assert {name: own.lag for name, own in capped.servers.items()} == {"r1": 3, "r2": 1}
    assert setting.capped(16) == setting
