"""From the stream to a batch of groups, oldest first; whatever is not trained on leaves with a reason.

read -> finished already? skip (deleted late, like an applied one)
-> not trainable?    dead letter: copied, credit freed, deleted at once
-> failed, stale?    dropped: credit freed, deleted late
-> else              held until the batch is full
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from learner.files import RunFiles, plain
from learner.ledger import Ledger
from learner.patience import Patience
from learner.screening import Refused, Rules, foreign, screen
from shared.errors import OutOfMemoryError
from shared.log import Logger
from shared.metrics import LearnerMetrics
from shared.records import Dropped
from shared.store import write_durably
from shared.stream import Entry, GroupReader
from shared.types import Group

READ_BYTES = 64 * 2**20  # of payload asked for in one read
NON_FINITE = "non_finite_step"


@dataclass(frozen=True)
class Held:
    """A group on its way into a step."""

    entry_id: str
    group: Group
    payload: bytes  # as it was in the stream


class Intake:
    """The learner's hands on the stream. Holds at most one batch of decoded groups."""

    def __init__(
        self,
        reader: GroupReader,
        ledger: Ledger,
        files: RunFiles,
        patience: Patience,
        metrics: LearnerMetrics,
        log: Logger,
        batch_groups: int,
        group_bytes: int,
    ) -> None:
        self._reader = reader
        self._ledger = ledger
        self._files = files
        self._patiently = patience
        self._metrics = metrics
        self._log = log
        self._batch_groups = batch_groups
        self._read_count = max(1, READ_BYTES // group_bytes)
        self.held: list[Held] = []

    @property
    def full(self) -> bool:
        """True when a batch is complete."""
        return len(self.held) >= self._batch_groups

    def read(self, rules: Rules) -> int:
        """One read of at most what the batch still lacks. Returns how many entries there were."""
        if self.full:
            return 0
        count = min(self._batch_groups - len(self.held), self._read_count)
        entries = self._patiently("read groups", lambda: self._reader.read(count))
        for entry in entries:
            self._take_in(entry, rules)
        return len(entries)

    def take(self) -> list[Held]:
        """Hands the batch over."""
        taken, self.held = self.held, []
        return taken

    def end_without_step(self, held: Held, detail: str) -> None:
        """Ends a group whose optimizer step was not finite."""
        self._end(held.group.prompt_index, Refused(NON_FINITE, detail, False, held.group))
        self._ledger.schedule(held.entry_id)

    def _take_in(self, entry: Entry, rules: Rules) -> None:
        if self._ledger.is_scheduled(entry.entry_id) or any(h.entry_id == entry.entry_id for h in self.held):
            return  # this very entry again, after a lost connection
        stranger = foreign(entry, rules.run_id)
        if stranger:
            # Its index may be that of another, good entry: the ledger must not learn of it.
            self._end(-1, stranger)
            self._release(entry.prompt_index)
            self._discard(entry, stranger)
        elif entry.prompt_index in self._ledger.finished or self._is_held(entry.prompt_index):
            self._ledger.duplicates += 1
            self._ledger.schedule(entry.entry_id)
        else:
            self._sort(entry, screen(entry, rules))

    def _sort(self, entry: Entry, result: Group | Refused) -> None:
        if isinstance(result, Group):
            self.held.append(Held(entry.entry_id, result, entry.payload))
            return
        self._end(entry.prompt_index, result)
        if result.dead_letter:
            self._discard(entry, result)
        else:
            self._ledger.schedule(entry.entry_id)

    def _is_held(self, prompt_index: int) -> bool:
        return any(h.group.prompt_index == prompt_index for h in self.held)

    def _end(self, prompt_index: int, refused: Refused) -> None:
        """Counts, records and frees a group that will never be applied."""
        self._ledger.end(prompt_index, refused.reason)
        self._metrics.groups_dropped.labels(refused.reason).inc()
        trajectories = refused.group.own if refused.group else ()
        n = len(trajectories)
        dropped = Dropped(
            prompt_index=prompt_index,
            reason=refused.reason,
            length_mean=sum(t.length for t in trajectories) / n if n else None,
            reward_mean=sum(t.reward for t in trajectories) / n if n else None,
            at=time.time(),
            detail=refused.detail,
        )
        self._files.dropped.append(plain(dropped))
        group_id = refused.group.group_id if refused.group else None
        self._log.warning("group dropped", group_id=group_id, reason=refused.reason, detail=refused.detail)
        self._release(prompt_index)

    def _release(self, prompt_index: int) -> None:
        if prompt_index >= 0:
            self._patiently("free a group's credit", lambda: self._reader.release([prompt_index]))

    def _discard(self, entry: Entry, refused: Refused) -> None:
        """Copies an entry to the dead letters, then deletes it."""
        self._patiently("keep a dead letter", lambda: self._keep(entry, refused))
        self._patiently("delete a dead letter", lambda: self._reader.delete([entry.entry_id]))

    def _keep(self, entry: Entry, refused: Refused) -> None:
        try:
            self._reader.dead_letter(entry, refused.reason, refused.detail)
        except OutOfMemoryError:  # the copy must not need what only its deletion frees
            folder = self._files.folder / "dead_letters"
            folder.mkdir(exist_ok=True)
            write_durably(folder / f"{entry.entry_id}.msgpack", entry.payload)
            self._log.warning("dead letter kept in a file: Redis is at maxmemory", file=str(folder / entry.entry_id))
