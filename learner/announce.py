"""A version's way out: written, what servers may want of it kept, announced with the credit that it frees.

written to the store --> largest lag of any server --> what is kept --> the policy's credit --> announced --> retention
"""

from __future__ import annotations

import math
from dataclasses import asdict
from itertools import chain, pairwise, takewhile

import numpy as np

from learner.intake import Intake
from learner.ledger import Ledger
from learner.lineage import Lineage
from learner.parts import Parts
from learner.publish import oldest_in_a_row, versions_to_keep
from shared.control import Latest
from shared.errors import StoreError
from shared.log import on_every_line
from shared.policies import Allowance, Trust
from shared.records import StepRecord


class Announcer:
    """Publishes versions, and remembers the newest: a Redis that has forgotten it hears of it again."""

    def __init__(self, parts: Parts, ledger: Ledger, intake: Intake) -> None:
        self._parts = parts
        self._ledger = ledger
        self._intake = intake
        self._policy = parts.config.admission.policy
        self._credit = parts.config.admission.max_staleness + 1  # versions that servers may be ahead
        self._least_ess = math.inf  # of the steps since the newest version; NaN where one was skipped
        self._announced: tuple[Latest, int] | None = None  # and the oldest version kept

    def stepped(self, record: StepRecord) -> None:
        """A step was taken, or skipped: the next version's credit hangs on it."""
        ess = math.nan if record.skipped else record.token_ess
        self._least_ess = float(np.minimum(self._least_ess, ess))  # NaN stays

    def publish_version(self, lineage: Lineage, parent: int, step: int) -> None:
        """Writes and announces the weights as the lineage's latest version."""
        parts, version = self._parts, lineage.latest
        parts.heartbeat.set_state(f"publishing version {version}")
        stored = parts.patience("publish", lambda: parts.publisher.write(version, parent, step))
        lag = parts.patience("read the lag of the servers", self._largest_lag)
        restorable = parts.checkpoints.versions()[-1:] if lag else ()
        kept = versions_to_keep(lineage, lag, parts.config.learner.retain_versions, restorable, self._pending)
        allowance = self._admit()
        depth, oldest = lineage.depth(version), oldest_in_a_row(lineage, kept)
        latest = Latest(version, parent, step, depth, allowance.versions, allowance.in_order, oldest)
        applied = list(self._ledger.unannounced)
        copy = version in lineage.copies
        parts.patience("announce a version", lambda: parts.publisher.announce(latest, min(kept), applied, copy))
        parts.log.info("published", version=version, parent=parent, **asdict(stored))
        self._announced = latest, min(kept)
        self._ledger.announced()
        self._retain(kept, version)
        parts.metrics.policy_version.set(version)
        parts.heartbeat.update(policy_version=version, step=step)
        on_every_line(policy_version=version)

    def announce_again(self, lineage: Lineage) -> bool:
        """Where Redis has an older version than was announced, announces it again, with its ancestry."""
        if self._announced is None:
            return False
        control, epoch, (latest, oldest_kept) = self._parts.control, self._parts.epoch, self._announced
        known = control.latest()
        if known is not None and known.policy_version >= latest.policy_version:
            return False
        descent = pairwise(chain(lineage.ancestors(latest.policy_version), [-1]))
        parents = dict(takewhile(lambda pair: pair[0] >= oldest_kept, descent))
        control.restore_parents(epoch, parents, lineage.copies)
        control.announce(epoch, latest, oldest_kept, [], latest.policy_version in lineage.copies)
        return True

    def _retain(self, kept: set[int], version: int) -> None:
        """Deletes what nobody needs; what the store does not let go of now is left to the next publish."""
        try:
            self._parts.publisher.retain(kept, version)
        except (StoreError, OSError) as error:
            self._parts.metrics.retention_failures.inc()
            self._parts.log.warning("versions that nobody needs stay for now", version=version, error=str(error))

    def _admit(self) -> Allowance:
        """What the policy allows, given the steps since the version before."""
        most = self._parts.adjusted.budgets.max_staleness + 1
        ess = None if self._least_ess == math.inf else self._least_ess
        self._least_ess = math.inf
        allowance = self._policy.admit(Trust(most, self._credit, ess))
        self._credit = max(1, min(most, allowance.versions))
        self._parts.metrics.credit_versions.set(self._credit)
        return Allowance(self._credit, allowance.in_order)

    def _largest_lag(self) -> int:
        """What any server may be asked for: by this configuration, by the operator, by a server's own configuration."""
        control = self._parts.control
        wish, members = self._parts.config.wished_lag(control.lag_wish().text), control.members().values()
        told = (m.get(name) for m in members if m for name in ("lag", "largest_lag"))
        asked = [wish.largest if wish else 0, *(int(lag or 0) for lag in told)]
        return max(self._parts.config.rollout.largest_lag, *asked)

    @property
    def _pending(self) -> set[int]:
        """The versions that drew the groups in hand."""
        groups = (held.group for held in self._intake.held)
        return {span.policy_version for g in groups for t in g.own for span in t.versions}
