"""A lag over random histories of publishes and restores: what a server serves, what it gets credit for, how stale."""

from __future__ import annotations

import uuid

from hypothesis import HealthCheck, given, settings

from rollout.sync import ancestor
from shared.admission import Admission, Credit
from shared.control import ControlState, Latest
from shared.keys import Keys
from shared.lag import Asked
from shared.redis_client import Client
from tests.learner.test_lineage_histories import HISTORIES, Run

LOCKSTEP = Credit(versions=1, groups_per_version=1000, max_bytes=2**30, group_bytes=1, lease_s=30)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(HISTORIES)
def test_a_lag_is_the_staleness_exactly_whatever_was_restored(client: Client, history: list[str]) -> None:
    run, keys = Run(), Keys(f"t{uuid.uuid4().hex[:12]}")
    for act in history[:30]:
        run.do(act)
        assert (run.lineage.latest in run.lineage.copies) == (run.lineage.latest in run.same), "what it announces"
    control = ControlState(client, keys)
    epoch = control.take_epoch()
    for version in run.order:
        control.announce(epoch, Latest(version, run.parents[version], 0), 0, [], copy=version in run.same)
    latest, descent = run.lineage.latest, control.descent()
    admission = Admission(client, keys, "s0", LOCKSTEP)
    for lag in range(run.depths[latest] + 2):
        possible = min(lag, run.depths[latest])
        assert run.lineage.staleness(ancestor(latest, lag, descent)) == possible
        served = {version for version in run.order if admission.lease(1, version, Asked(lag)).indices}
        assert served == {v for v in run.order if v in run.lineage and run.lineage.staleness(v) == possible}
