"""An outage is waited out, for a while, and said."""

import pytest

from learner.patience import Patience
from shared.errors import AccessError, DeadlineError, FencedError, OutOfMemoryError, RefusedError, StreamError
from shared.log import configure
from shared.metrics import LearnerMetrics
from shared.process import StopFlag


class Away:
    """A command that fails some times before it works."""

    def __init__(self, times: int, error: Exception | None = None) -> None:
        self.times = times
        self.error = error or StreamError("Redis cannot be reached: connection refused")

    def __call__(self) -> str:
        self.times -= 1
        if self.times >= 0:
            raise self.error
        return "done"


class Outage:
    def __init__(self, outage_s: float = 5.0) -> None:
        self.said: list[str] = []
        self.reopened = 0
        self.stop = StopFlag()
        log = configure("run", "learner", "critical")
        self.metrics = LearnerMetrics()
        self.patience = Patience(self._reopen, self.said.append, self.stop, log, self.metrics.redis, outage_s)

    def _reopen(self) -> None:
        self.reopened += 1


def test_a_command_that_works_is_run_once_and_nothing_is_said() -> None:
    outage = Outage()
    assert outage.patience("read groups", Away(0)) == "done"
    assert (outage.said, outage.reopened) == ([], 0)


def test_the_stream_is_opened_again_before_each_new_try() -> None:
    outage = Outage()
    assert outage.patience("read groups", Away(2)) == "done"
    assert outage.said == ["waiting for Redis, to read groups"] * 2
    assert outage.reopened == 2


def test_an_outage_without_end_ends_with_its_purpose_and_last_error() -> None:
    with pytest.raises(DeadlineError, match=r"0\.3 s for Redis, to read groups; last error: .*connection refused"):
        Outage(0.3).patience("read groups", Away(1000))


def test_a_stop_ends_the_wait_at_once() -> None:
    outage = Outage(60.0)
    outage.stop.reason = "SIGTERM"
    with pytest.raises(StreamError, match="connection refused"):
        outage.patience("read groups", Away(1000))


def test_a_fence_is_not_waited_out() -> None:
    with pytest.raises(FencedError):
        Outage().patience("publish", Away(1, FencedError("another learner")))


@pytest.mark.parametrize("outages", [0, 1])
def test_refused_credentials_are_not_waited_out(outages: int) -> None:
    tries = 0

    def command() -> None:
        nonlocal tries
        tries += 1
        raise StreamError("away") if tries <= outages else AccessError("Redis refuses redis.password")

    with pytest.raises(AccessError):
        Outage(60.0).patience("publish", command)
    assert tries == outages + 1


@pytest.mark.parametrize("error", [OutOfMemoryError("OOM"), RefusedError("ERR Error running script")])
def test_what_only_informs_is_left_out_when_redis_refuses_it(error: StreamError) -> None:
    outage = Outage()
    full = Away(9, error)
    outage.patience.tell("add to the history", full)
    assert (full.times, outage.reopened) == (8, 0)
    assert outage.metrics.registry.get_sample_value("trustbatch_redis_left_out_total") == 1


def test_every_outage_and_every_retry_is_counted() -> None:
    outage = Outage()
    for away in (0, 3, 1):
        assert outage.patience("read groups", Away(away)) == "done"
    value = outage.metrics.registry.get_sample_value
    assert value("trustbatch_redis_outages_total") == 2
    assert value("trustbatch_redis_retries_total") == 4
