"""A component's sign of life."""

import time

from shared.control import ControlState
from shared.heartbeat import Heartbeat
from shared.keys import Keys
from shared.redis_client import Client


def wait_for_state(control: ControlState, state: str | None, seconds: float = 60.0) -> None:
    ends = time.monotonic() + seconds
    while True:
        status = control.status_of("learner")
        if (status["state"] if status else None) == state:
            return
        assert time.monotonic() < ends, f"not {state!r} but {status}"
        time.sleep(0.01)


def test_a_change_of_state_is_sent_at_once_with_the_time_it_began(client: Client, keys: Keys) -> None:
    control = ControlState(client, keys)
    heartbeat = Heartbeat(control, "learner", ttl_s=60, kind="learner", pid=7).start()
    try:
        wait_for_state(control, "starting")
        before = time.time()
        heartbeat.set_state("training step 1", step=1)
        wait_for_state(control, "training step 1")
        status = control.status_of("learner")
        assert status is not None
        assert (status["kind"], status["pid"], status["step"]) == ("learner", 7, 1)
        assert before <= status["since"] <= time.time()
        heartbeat.set_state("training step 1", step=2)
        assert heartbeat.status["since"] == status["since"], "the same state has not begun anew"
        assert heartbeat.status["step"] == 2
    finally:
        heartbeat.stop()
    assert "learner" not in control.members()


def test_it_is_renewed_before_it_runs_out_and_runs_out_when_nobody_renews_it(client: Client, keys: Keys) -> None:
    control = ControlState(client, keys)
    heartbeat = Heartbeat(control, "learner", ttl_s=1.5).start()
    wait_for_state(control, "starting")
    renewals: list[int] = []  # what was left each time
    left, ends = 0, time.monotonic() + 60
    while len(renewals) < 3:
        assert time.monotonic() < ends
        before, left = left, client.pttl(keys.heartbeat("learner"))
        renewals += [before] if left > before else []
        time.sleep(0.02)
    assert min(renewals[1:]) > 0, "milliseconds: it had not run out"
    heartbeat.stop(leave=False)
    wait_for_state(control, None)
    assert control.members() == {"learner": None}
