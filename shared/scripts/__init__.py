"""The Lua scripts: what has to be one atomic step in Redis, and nothing else.

Two habits in all of them. Time is Redis's own (TIME), so clocks of machines do not matter. Scripts that
free memory or keep a lease alive begin with `del` of a key that never exists: it is a write that is
allowed at maxmemory, and after it Redis lets the script's other writes through.
"""

from shared.scripts.admission import GIVE_BACK, LEASE, RENEW
from shared.scripts.control import (
    ADD_EXAMPLES,
    ANNOUNCE,
    CLAIM_EVALUATION,
    HEARTBEAT,
    RELEASE_EVALUATION,
    SET_PHASE,
)
from shared.scripts.history import ADD_HISTORY, REWIND, SAMPLE
from shared.scripts.letters import DEAD_LETTER, REQUEUE
from shared.scripts.recovery import CLAIM_LOST, RESTORE, RESTORE_PARENTS, SETTLE_CLAIMS
from shared.scripts.steering import ACT, CLAIM_CONTROLLER
from shared.scripts.stream import APPEND, DELETE, OLDEST, RELEASE
from shared.scripts.transfer import ANSWER_TRANSFER, CALL_TRANSFER, WANT_FILES
from shared.scripts.wishes import MARK, REMOVE, WISH

__all__ = [
    "ACT",
    "ADD_EXAMPLES",
    "ADD_HISTORY",
    "ALL",
    "ANNOUNCE",
    "ANSWER_TRANSFER",
    "APPEND",
    "CALL_TRANSFER",
    "CLAIM_CONTROLLER",
    "CLAIM_EVALUATION",
    "CLAIM_LOST",
    "DEAD_LETTER",
    "DELETE",
    "GIVE_BACK",
    "HEARTBEAT",
    "LEASE",
    "MARK",
    "OLDEST",
    "RELEASE",
    "RELEASE_EVALUATION",
    "REMOVE",
    "RENEW",
    "REQUEUE",
    "RESTORE",
    "RESTORE_PARENTS",
    "REWIND",
    "SAMPLE",
    "SETTLE_CLAIMS",
    "SET_PHASE",
    "WANT_FILES",
    "WISH",
]

ALL: tuple[str, ...] = tuple(source for name, source in sorted(globals().items()) if name.isupper())
