"""What may be asked for ahead of training: the figure that is shown is the one that leases are given out by."""

import pytest

from shared.admission import Admission
from shared.budgets import budgets, credit
from shared.config import Config
from shared.control import ControlState, Latest
from shared.keys import Keys
from shared.redis_client import Client

LEAST, CONFIGURED = 4, 10  # groups


@pytest.mark.parametrize(("groups", "counts"), {0: LEAST, 2: LEAST, 4: 4, 7: 7, 10: 10, 99: CONFIGURED}.items())
def test_a_wish_for_fewer_bytes_is_followed_down_to_one_batch(
    config: Config, client: Client, keys: Keys, groups: int, counts: int
) -> None:
    one = config.group_bytes_bound
    admission = config.admission.model_copy(update={"max_bytes": CONFIGURED * one, "max_staleness": 50})
    learner = config.learner.model_copy(update={"groups_per_batch": LEAST})
    narrow = config.model_copy(update={"admission": admission, "learner": learner})
    wish = b'{"max_bytes": %d}' % (groups * one)
    assert budgets(narrow, wish).max_bytes == counts * one
    control = ControlState(client, keys)
    control.announce(control.take_epoch(), Latest(0, -1, 0), 0, [])
    control.wish_admission(wish, "ann")
    grant = Admission(client, keys, "r0", credit(narrow)).lease(99, 0)
    assert (len(grant.indices), grant.reason) == (counts, "byte credit")
