from __future__ import annotations

import pytest

from learner.refusals import Refusals, refusals
from shared.config import Config
from shared.control import ControlState
from shared.keys import Keys
from shared.log import configure
from shared.redis_client import connect

SERVING = {"kind": "rollout", "policy_version": 3, "refused_version": None, "refused_nats": None}
REFUSING = {"kind": "rollout", "policy_version": -1, "refused_version": 4, "refused_nats": 0.125}


def test_only_living_servers_that_refuse_a_version_are_named() -> None:
    found = refusals(
        {"learner": {"kind": "learner"}, "rollout:r0": SERVING, "rollout:r1": REFUSING, "rollout:r2": None}
    )
    assert found == [("rollout:r1", 4, "refuses version 4: its probe is off by 0.125 nats")]


def test_a_difference_that_is_no_number_is_said_to_be_none() -> None:
    [(_, _, text)] = refusals({"rollout:r1": {**REFUSING, "refused_nats": None}})
    assert text == "refuses version 4: its probe could not be compared"


def test_a_refusal_is_heard_within_a_second_and_logged_once(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    control = ControlState(connect(config), Keys(config.run.id))
    now = 0.0
    hears = Refusals(control, configure(config.run.id, "learner"), lambda: now)
    assert hears.hear() == ""
    control.beat("rollout:r1", REFUSING, 30)
    assert hears.hear() == ""
    for now in (1.0, 2.0):  # noqa: B007
        assert hears.hear() == "rollout:r1 refuses version 4: its probe is off by 0.125 nats"
    control.beat("rollout:r1", {**SERVING, "policy_version": 5}, 30)
    now = 3.0
    assert hears.hear() == ""
    assert "".join(capsys.readouterr()).count("a version is refused") == 1
