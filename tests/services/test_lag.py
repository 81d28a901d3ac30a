"""`trustbatch lag` on a real Redis: what it shows, asks for, and refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.cli import app
from services.lag import clear_lag, read_lag, set_lag, with_server
from shared.config import Config, load_config
from shared.config.lag import LagSetting, ServerLag, to_wish
from shared.config.load import dump_config
from shared.config.transfer import TransferConfig
from shared.control import ControlState, Latest
from shared.errors import ConfigError, StreamError
from shared.keys import Keys
from shared.redis_client import Client
from shared.steering import CONTROLLER


@pytest.fixture
def run(config: Config, tmp_path: Path) -> Path:
    """The file of a run whose dial goes to 16."""
    given = [f"redis.url={config.redis.url}", f"run.id={config.run.id}", f"run.folder={tmp_path}", "rollout.max_lag=16"]
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(load_config(None, given, {})))
    return file


@pytest.fixture
def control(client: Client, keys: Keys) -> ControlState:
    """Of a run that has begun."""
    control = ControlState(client, keys)
    control.announce(control.take_epoch(), Latest(0, -1, 0), 0, [])
    return control


def lag(*arguments: str) -> str:
    """What the command prints. Its errors are raised, as `trustbatch`'s main meets them."""
    return CliRunner().invoke(app, ["lag", *arguments], catch_exceptions=False).output


def test_the_dial_is_shown_set_for_all_and_for_one_and_cleared(run: Path, control: ControlState, keys: Keys) -> None:
    control.beat(
        "rollout:r0", {"kind": "rollout", "lag": 4, "lag_served": 5, "policy_version": 7, "arm": "control"}, 30
    )
    name = keys.run_id
    assert lag("show", str(run)).splitlines()[:3] == ["lag       0", "asked by  the configuration", "max_lag   16"]
    assert lag("set", str(run), "8") == f"{name}: lag 8\n"
    assert lag("set", str(run.parent), "8") == f"{name}: lag 8, as before\n", "a run's folder does as well"
    assert lag("set", str(run), "0@0,8@100", "--server", "r1") == f"{name}: lag 8; r1: 0@0,8@100\n"
    shown = lag("show", str(run))
    assert "asked by  trustbatch lag, 20" in shown
    assert shown.splitlines()[-1].split() == ["r0", "4", "5", "7", "control"]
    assert lag("clear", str(run), "--server", "r1") == f"{name}: lag 8\n"
    text = "uniform:0:16, drawn again every 4 versions, control arm 0.25 of dwells of 4 versions"
    assert lag("set", str(run), "uniform:0:16", "--dwell", "4 versions", "--control", ".25") == f"{name}: lag {text}\n"
    assert lag("clear", str(run)) == f"{name}: lag 0\n"
    assert lag("clear", str(run)) == f"{name}: lag 0, as before\n"
    assert {event["by"] for event in control.events()} == {"trustbatch lag"}
    assert [event["text"] for event in control.events()][:2] == [
        "servers are to lag as configured: 0",
        f"servers are to lag by {text}",
    ]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (
            ["17"],
            r"lag 17 asks for up to 17 versions; .* at most 16 \(rollout.max_lag\): ask for less, or go on with it",
        ),
        (["unif:3"], "LAG: a lag is written as 8, uniform:0:16"),
        (["3", "--dwell", "4"], "--dwell: a dwell is written as `8 versions`"),
        (["3", "--dwell", "4 groups"], "dwell is 4 groups, but there is nothing to draw"),
        (["3", "--control", "1.5"], "--control: Input should be less than 1"),
        (["3", "--server", "r 1"], "'r 1' cannot be a server's id"),
    ],
)
def test_what_cannot_be_is_said_in_the_words_of_the_command(
    run: Path, control: ControlState, arguments: list[str], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        lag("set", str(run), *arguments)
    assert not control.lag_wish().text


def test_a_run_that_has_not_begun_is_over_or_has_no_redis_says_so(
    run: Path, client: Client, keys: Keys, config: Config, tmp_path: Path
) -> None:
    with pytest.raises(StreamError, match=r"has not begun: give rollout.lag in its configuration, or start it first"):
        lag("set", str(run), "8")
    control = ControlState(client, keys)
    control.announce(control.take_epoch(), Latest(0, -1, 0), 0, [])
    control.set_phase("finished")
    for command in (["set", str(run), "8"], ["clear", str(run)]):
        with pytest.raises(StreamError, match="is finished: there is no next group that could lag"):
            lag(*command)
    assert "lag       0" in lag("show", str(run))
    gone = tmp_path / "gone.yaml"
    gone.write_text(f"redis: {{url: 'redis://127.0.0.1:1'}}\nrun: {{id: {config.run.id}}}\n")
    with pytest.raises(StreamError, match=f"the lag of {config.run.id} cannot be read or set now: Redis cannot be"):
        lag("show", str(gone))
    gone.write_text("run: {id: never}\n")
    with pytest.raises(ConfigError, match=r"redis.url is not set"):
        lag("set", str(gone), "8")
    with pytest.raises(ConfigError, match="neither a run folder nor a YAML file"):
        lag("show", str(tmp_path / "nothing"))


def test_a_stopped_run_takes_the_wish_with_it_to_its_next_start(run: Path, control: ControlState) -> None:
    control.set_phase("stopped")
    config = load_config(run)
    assert set_lag(config, control, LagSetting(lag=8), "ann")
    assert read_lag(config, control).setting == LagSetting(lag=8)
    assert clear_lag(config, control, "ann")


def test_a_wish_that_was_made_from_another_one_is_not_put_over_a_third(run: Path, control: ControlState) -> None:
    config = load_config(run)
    now = read_lag(config, control)
    assert set_lag(config, control, LagSetting(lag=3), "bob")
    with pytest.raises(StreamError, match="somebody else has just changed the lag"):
        set_lag(config, control, with_server(now.setting, "r1", ServerLag(lag=4)), "ann", now.wish)
    assert read_lag(config, control).setting == LagSetting(lag=3)


def test_one_server_s_lag_is_set_on_what_the_operator_wants_beneath_the_controller_s_cap(
    run: Path, control: ControlState, keys: Keys
) -> None:
    memory = {"lag": 3, "lag_wish": ["12", "ann", "1.0"]}
    assert control.steering.claim("here", 30)
    assert control.steering.act("here", memory, {}, {"lag": "3", "lag_by": CONTROLLER, "lag_at": "2.0"})
    assert str(read_lag(load_config(run), control).setting) == "3"
    assert lag("set", str(run), "1", "--server", "r1") == f"{keys.run_id}: lag 12; r1: 1\n"


def test_one_server_s_lag_leaves_the_others_as_they_are() -> None:
    all_of_them = LagSetting.model_validate({"lag": "uniform:0:4", "dwell": "4 versions", "servers": {"r1": 3}})
    changed = with_server(all_of_them, "r2", ServerLag(lag=1))
    assert str(changed) == "uniform:0:4, drawn again every 4 versions; r1: 3; r2: 1"
    assert with_server(with_server(changed, "r1", None), "r2", None).servers == {}


def test_a_wish_that_the_wire_cannot_serve_is_not_what_is_asked_for(config: Config, control: ControlState) -> None:
    control.wish_lag(to_wish(LagSetting(lag=8)).encode(), "ann")
    wired = config.store.model_copy(update={"transfer": TransferConfig(kind="gloo")})
    assert str(read_lag(config, control).setting) == "8"
    found = read_lag(config.model_copy(update={"store": wired}), control)
    assert (str(found.setting), found.by, found.at) == ("0", "", None)
