"""The controller on a real Redis: what it writes, what it leaves alone, and who goes on after it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence

import pytest

from services.controller import loop
from services.controller.decide import Memory
from services.controller.loop import Controller, remembered
from services.controller.wishes import wanted_by_operator
from services.lag import clear_lag, set_lag
from shared import log
from shared.config import Config, load_config
from shared.config.lag import LagSetting
from shared.control import ControlState, Latest
from shared.errors import StreamError
from shared.keys import Keys
from shared.redis_client import Client, connect
from shared.steering import CONTROLLER, Steering
from tests.conftest import RedisServer
from tests.services.controller.rows import row

pytestmark = pytest.mark.system


class Run:
    """A run as its learner and its operator see it, with control planes that a test looks through."""

    def __init__(self, config: Config, client: Client, *overrides: str) -> None:
        given = [f"redis.url={config.redis.url}", f"run.id={config.run.id}", "rollout.lag=16", "rollout.max_lag=32"]
        given += ["controller.enabled=true", "controller.patience=2", *overrides]
        self.config = load_config(None, given, {})
        self.client, self.keys = client, Keys(config.run.id)
        self.control, self.steering = ControlState(client, self.keys), Steering(client, self.keys)
        self.epoch = self.control.take_epoch()
        self.control.announce(self.epoch, Latest(0, -1, 0), 0, [])
        self.control.set_phase("running")
        self.control.beat("learner", {"kind": "learner"}, 30)
        self.step = 0
        self.first = self.controller("a")
        self.steps([1.0])
        self.first.look()  # begins to watch here

    def controller(self, who: str) -> Controller:
        return Controller(self.config, self.client, who, log.configure(self.config.run.id, who))

    def steps(self, ess: Sequence[float], lag: int = 0, queue: int = 0) -> None:
        for value in ess:
            self.step += 1
            self.control.add_history(row(self.step, value, lag, queue))
            self.control.announce(self.epoch, Latest(self.step, self.step - 1, self.step), 0, [])

    @property
    def memory(self) -> Memory:
        return remembered(self.steering.state())

    def told(self) -> list[str]:
        return [event["text"] for event in self.control.events() if event["by"] == CONTROLLER]


@pytest.fixture
def run(config: Config, client: Client) -> Run:
    return Run(config, client)


def test_low_steps_lower_the_lag_and_are_an_event(run: Run) -> None:
    run.steps([0.8, 0.8], lag=16, queue=4)
    run.first.look()
    wish = run.control.lag_wish()
    assert (wish.text, wish.by) == (b"8", CONTROLLER)
    (text,) = run.told()
    assert "token ESS is 0.800 (wanted: 0.9), 2 steps in a row below" in text
    assert (
        "staleness is 20.0 versions, 16.0 of them lag: servers are to lag by at most 8 versions instead of 16" in text
    )
    assert run.memory.level == "narrowed"


def test_it_narrows_what_is_waiting_and_restores_what_the_operator_had(run: Run) -> None:
    set_lag(run.config, run.control, LagSetting.model_validate({"lag": 2, "servers": {"r1": 0}}), "ann")
    before = run.steering.wishes()
    run.first.look()
    run.steps([0.8] * 6, lag=2, queue=4)  # the first four may have been asked for before
    run.first.look()
    run.steps([0.8] * 4, lag=2, queue=1)
    run.first.look()
    wishes = run.steering.wishes()
    assert (json.loads(wishes.admission), wishes.admission_by) == ({"max_staleness": 2}, CONTROLLER)
    assert json.loads(wishes.lag) == {"lag": 1, "servers": {"r1": 0}}
    for _ in range(12):
        run.steps([0.999] * 12, lag=1)
        run.first.look()
    after = run.steering.wishes()
    assert (after.lag, after.lag_by, after.lag_at) == (before.lag, "ann", before.lag_at)
    assert (after.admission, after.admission_by) == ("", "")
    assert run.memory.level == "watching"


def test_what_the_operator_does_holds_at_once_and_begins_anew(run: Run) -> None:
    run.steps([0.8, 0.8], lag=16, queue=4)
    run.first.look()
    set_lag(run.config, run.control, LagSetting(lag=20), "ann")
    run.steps([0.8], lag=8)
    run.first.look()
    assert run.memory.lag is None
    assert run.memory.low == 0, "no votes from before"
    assert "somebody else has changed the lag" in run.told()[0]
    assert run.control.lag_wish().by == "ann"
    run.steps([0.8] * 30, lag=20)
    run.first.look()
    assert run.control.lag_wish().text == b"10"
    clear_lag(run.config, run.control, "ann")
    run.first.look()
    assert run.control.lag_wish().text == b""
    assert run.memory.lag is None


def test_a_collapse_makes_the_run_synchronous_and_then_pauses_it_until_the_operator_resumes(
    config: Config, client: Client
) -> None:
    run = Run(config, client, "learner.publish_every=2", "learner.checkpoint_every=2")
    run.steps([0.2, 0.2], lag=16, queue=4)
    run.first.look()
    wishes = run.steering.wishes()
    assert (wishes.lag, json.loads(wishes.admission)) == ("0", {"max_staleness": 0})
    assert run.control.publish_above() == run.step
    assert "and the learner publishes one at once" in run.told()[0]
    run.steps([0.2] * 2)
    run.first.look()
    assert run.control.paused_by() == CONTROLLER
    assert "until the operator resumes it, by the page's button or POST /v1/resume" in run.told()[0]
    run.steps([0.999] * 50)
    run.first.look()
    assert run.control.paused_by() == CONTROLLER, "only the operator resumes"
    run.control.set_paused(False)
    run.first.look()
    assert run.memory.level == "synced"
    assert "somebody else has changed the pause" in run.told()[0]


def test_an_early_version_is_not_wished_for_where_it_would_make_groups_too_stale(
    config: Config, client: Client
) -> None:
    run = Run(config, client, "learner.publish_every=2", "learner.checkpoint_every=2")
    many = run.config.learner.groups_per_publish * run.config.admission.max_staleness + 1
    run.client.sadd(run.keys.unapplied, *range(many))
    run.steps([0.2, 0.2], lag=16, queue=4)
    run.first.look()
    assert run.memory.level == "synced"
    assert run.control.publish_above() == -1


def test_while_the_operator_pauses_the_run_it_does_nothing(run: Run) -> None:
    run.control.set_paused(True)
    run.steps([0.2] * 9, lag=16, queue=4)
    run.first.look()
    assert (run.told(), run.memory.low) == ([], 0)
    run.control.set_paused(False)
    run.first.look()
    assert run.memory.level == "synced"


def test_a_lag_that_no_server_follows_any_more_is_not_what_the_operator_has(config: Config, client: Client) -> None:
    run = Run(config, client, "rollout.lag=0", "rollout.max_lag=0", "store.transfer.kind=gloo")
    run.control.wish_lag(b"16", "ann")  # asked for while weights went by files
    run.first.look()
    assert wanted_by_operator(run.config, run.memory).lag == 0, "over the wire servers follow the configured"
    run.steps([0.8] * 2, queue=4)
    run.first.look()
    assert (run.control.lag_wish().text, run.control.lag_wish().by) == (b"16", "ann")


def test_a_configuration_that_allows_less_holds_at_once(run: Run, config: Config, client: Client) -> None:
    run.steps([0.8, 0.8], lag=16, queue=4)
    run.first.look()
    assert run.control.lag_wish().text == b"8"
    again = load_config(None, [f"redis.url={config.redis.url}", f"run.id={config.run.id}", "rollout.lag=6"], {})
    for _ in range(2):
        client.delete(run.keys.controller_lease)  # the process before has ended
        Controller(again, client, "a", log.configure(config.run.id, "a")).look()
        assert (run.control.lag_wish().text, run.steering.wishes().lag_by) == (b"", "")
    assert "the configuration has changed: servers are to lag by at most 6 versions" in run.told()[0]
    assert len(run.told()) == 2


def test_of_two_control_planes_one_acts_and_the_other_goes_on(run: Run) -> None:
    second = run.controller("b")
    run.steps([0.8], lag=16)
    run.first.look()
    run.steps([0.8], lag=16)
    second.look()
    assert run.told() == []
    run.client.delete(run.keys.controller_lease)  # the first is dead
    second.look()
    assert len(run.told()) == 1, "the vote that the first had counted is not lost"
    run.first.look()
    assert run.steering.holder() == "b"


def test_of_two_control_planes_of_one_name_one_acts_too(run: Run) -> None:
    second = run.controller("a")
    run.steps([0.8, 0.8], lag=16)
    second.look()
    assert run.told() == []
    run.first.look()
    assert len(run.told()) == 1
    assert run.steering.holder() == "a"


def test_no_rows_no_acts(run: Run) -> None:
    run.steps([0.8, 0.8], lag=16)
    run.first.look()
    before = run.steering.state()
    for _ in range(5):
        run.first.look()
    assert (run.steering.state(), len(run.told())) == (before, 1)


def test_what_was_before_it_began_is_not_its_business(config: Config, client: Client) -> None:
    late = Run(config, client)
    late.client.delete(late.keys.controller)
    late.steps([0.2] * 20, lag=16)
    late.first.look()
    assert late.told() == []


def test_a_memory_that_cannot_be_read_is_begun_anew(run: Run) -> None:
    run.client.set(run.keys.controller, '{"lag": "many"}')
    run.first.look()
    assert run.memory.lag is None
    assert run.told() == []


@pytest.fixture
def fragile(own_redis: RedisServer) -> Callable[[], Client]:
    config = load_config(None, [f"redis.url={own_redis.url}"], {})
    return lambda: connect(config, timeout_s=0.5)


def test_without_redis_it_does_nothing_and_afterwards_goes_on(
    own_redis: RedisServer, fragile: Callable[[], Client]
) -> None:
    config = load_config(None, [f"redis.url={own_redis.url}", "run.id=fragile"], {})
    run = Run(config, fragile())
    run.steps([0.8], lag=16)
    run.first.look()
    own_redis.kill()
    with pytest.raises(StreamError):
        run.first.look()
    own_redis.start()
    run.steps([0.8], lag=16)
    run.first.look()
    assert len(run.told()) == 1


def test_a_look_that_fails_is_not_the_last(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loop, "LOOK_S", 0.02)
    run.client.xadd(run.keys.history, {"row": b"{"})
    run.first.start()
    try:
        eventually(lambda: "a look of the controller failed" in caplog.text)
        run.steps([0.8, 0.8], lag=16, queue=4)
        eventually(lambda: run.control.lag_wish().text == b"8")
    finally:
        run.first.stop()


def eventually(holds: Callable[[], bool]) -> None:
    ends = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.01)
