"""The controller's lease and its acts on a real Redis: one step or none, and the operator wins."""

from __future__ import annotations

import pytest

from shared.control import ControlState
from shared.keys import Keys
from shared.redis_client import Client
from shared.steering import CONTROLLER, Steering, Wanted

LAGGING = {"lag": "4", "lag_by": CONTROLLER, "lag_at": "1.0"}


@pytest.fixture
def steering(client: Client, keys: Keys) -> Steering:
    return Steering(client, keys)


@pytest.fixture
def control(client: Client, keys: Keys) -> ControlState:
    return ControlState(client, keys)


def test_one_holds_the_lease_until_it_runs_out(steering: Steering, client: Client, keys: Keys) -> None:
    assert steering.holder() == ""
    assert steering.claim("a", 30)
    assert steering.claim("a", 30)
    assert not steering.claim("b", 30)
    assert steering.holder() == "a"
    assert 0 < client.pttl(keys.controller_lease) <= 30_000
    client.delete(keys.controller_lease)  # as when it has run out
    assert steering.claim("b", 30)
    assert not steering.claim("a", 30)


def test_an_act_writes_wish_memory_and_event(steering: Steering, control: ControlState) -> None:
    steering.claim("a", 30)
    assert steering.wishes() == Wanted()
    assert steering.act("a", {"lag": 4}, {"lag": ""}, LAGGING, ("controller", "narrower"))
    assert (control.lag_wish().text, control.lag_wish().by) == (b"4", CONTROLLER)
    assert steering.state() == {"lag": 4}
    (event,) = control.events()
    assert (event["kind"], event["text"], event["by"]) == ("controller", "narrower", CONTROLLER)
    assert steering.act("a", {"lag": 5})
    assert (steering.state(), len(control.events())) == ({"lag": 5}, 1)


def test_nothing_is_written_without_the_lease(steering: Steering, control: ControlState) -> None:
    assert not steering.act("a", {"lag": 4}, {}, LAGGING, ("controller", "narrower"))
    steering.claim("b", 30)
    assert not steering.act("a", {"lag": 4}, {}, LAGGING, ("controller", "narrower"))
    assert (steering.state(), steering.wishes(), control.events()) == ({}, Wanted(), [])


def test_an_operator_who_is_a_moment_earlier_wins(steering: Steering, control: ControlState) -> None:
    steering.claim("a", 30)
    before = steering.wishes()
    control.wish_lag(b"9", "ann")
    assert not steering.act("a", {"lag": 4}, {"lag": before.lag}, LAGGING, ("controller", "narrower"))
    assert (control.lag_wish().text, steering.state(), control.events()) == (b"9", {}, [])
    control.set_paused(True)
    assert not steering.act("a", {}, {"paused": before.paused}, {"paused": "1"}, None)
    assert control.paused_by() == "operator"


def test_who_asks_for_what_the_controller_asks_for_takes_it_over(steering: Steering, control: ControlState) -> None:
    steering.claim("a", 30)
    steering.act("a", {}, {}, LAGGING)
    assert control.wish_lag(b"4", "ann")
    assert control.lag_wish().by == "ann"
    assert not control.wish_lag(b"4", "ann")
