"""From the stream to a batch of groups, oldest first by default; whatever is not trained on leaves with a reason.

read -> finished already? skip (deleted late, like an applied one); a requeued dead letter is looked at again
-> not trainable?    dead letter: moved out of the stream, credit freed
-> failed, stale?    dropped: credit freed, deleted late
-> else              held until the batch is full; with a choice (`admission.select`), until it is chosen or too stale
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from learner.files import RunFiles, plain
from learner.ledger import Ledger
from learner.lineage import Lineage
from learner.patience import Patience
from learner.screening import Refused, Rules, evicted, foreign, length_and_reward, screen, waiting
from shared.letters import Letter
from shared.log import Logger
from shared.metrics import LearnerMetrics
from shared.policies import Select, oldest
from shared.records import Dropped
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
    latest: int = -1  # the latest version when it was appended; -1 where nobody knows


class Intake:
    """The learner's hands on the stream. Holds at most one window of decoded groups; without a choice, a batch."""

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
        dead_letter_bytes: int,
        select: Select = oldest,
        window_groups: int = 0,
    ) -> None:
        self._reader = reader
        self._ledger = ledger
        self._files = files
        self._patiently = patience
        self._metrics = metrics
        self._log = log
        self._batch_groups = batch_groups
        self._read_count = max(1, READ_BYTES // group_bytes)
        self._dead_letter_bytes = dead_letter_bytes
        self._select = select
        self._window_groups = max(batch_groups, window_groups)
        self._screened_at = -1  # the version at which what is held was last looked at
        self.held: list[Held] = []

    @property
    def full(self) -> bool:
        """True when a batch is complete."""
        return len(self.held) >= self._batch_groups

    def read(self, rules: Rules) -> int:
        """Reads at most what the window still lacks; waits only while there is no batch. Returns how many entries."""
        self._evict(rules)
        found = more = self._read_once(rules)
        while more and self.full:
            more = self._read_once(rules)
            found += more
        return found

    def take(self, lineage: Lineage) -> list[Held]:
        """Hands a batch over, as the policy selects it; what is left stays."""
        places = self._select([waiting(h.group, lineage) for h in self.held], self._batch_groups)
        taken = [self.held[i] for i in places]
        gone = {h.entry_id for h in taken}
        self.held = [h for h in self.held if h.entry_id not in gone]
        return taken

    def _read_once(self, rules: Rules) -> int:
        count = min(self._window_groups - len(self.held), self._read_count)
        if count <= 0:
            return 0
        wait = not self.full
        entries = self._patiently("read groups", lambda: self._reader.read(count, wait))
        for entry in entries:
            self._take_in(entry, rules)
        return len(entries)

    def _evict(self, rules: Rules) -> None:
        """Drops what has become too stale while it was held."""
        if self._screened_at == rules.lineage.latest:
            return
        self._screened_at = rules.lineage.latest
        kept = []
        for held in self.held:
            refused = evicted(held.group, rules)
            if refused is None:
                kept.append(held)
            else:
                self._end(held.group.prompt_index, refused)
                self._ledger.schedule(held.entry_id)
        self.held = kept

    def end_without_step(self, held: Held, detail: str, lineage: Lineage) -> None:
        """Ends a group whose optimizer step was not finite."""
        staleness = waiting(held.group, lineage).staleness
        self._end(held.group.prompt_index, Refused(NON_FINITE, detail, False, held.group, staleness))
        self._ledger.schedule(held.entry_id)

    def _take_in(self, entry: Entry, rules: Rules) -> None:
        if self._ledger.is_scheduled(entry.entry_id) or any(h.entry_id == entry.entry_id for h in self.held):
            return  # this very entry again, after a lost connection
        stranger = foreign(entry, rules.run_id)
        if stranger:
            # Its index may be that of another, good entry: the ledger must not learn of it.
            self._release(entry.prompt_index)
            self._bury(replace(entry, prompt_index=-1), stranger)
        elif entry.prompt_index in self._ledger.buried:
            self._ledger.unbury(entry.prompt_index)
            self._log.info("a dead letter was requeued", group_id=entry.group_id)
            self._sort(entry, screen(entry, rules))
        elif entry.prompt_index in self._ledger.finished or self._is_held(entry.prompt_index):
            self._ledger.duplicates += 1
            self._ledger.schedule(entry.entry_id)
        else:
            self._sort(entry, screen(entry, rules))

    def _sort(self, entry: Entry, result: Group | Refused) -> None:
        if isinstance(result, Group):
            self.held.append(Held(entry.entry_id, result, entry.payload, entry.latest))
            return
        if result.dead_letter:
            self._bury(entry, result)
        else:
            self._end(entry.prompt_index, result)
            self._ledger.schedule(entry.entry_id)

    def _is_held(self, prompt_index: int) -> bool:
        return any(h.group.prompt_index == prompt_index for h in self.held)

    def _end(self, prompt_index: int, refused: Refused) -> None:
        """Counts, records and frees a group that will never be applied."""
        self._ledger.end(prompt_index, refused.reason)
        self._note(prompt_index, refused)
        self._release(prompt_index)

    def _note(self, prompt_index: int, refused: Refused, dead_letter: bool = False) -> None:
        """Writes down that a group has left, and why."""
        means = length_and_reward(refused.group) if refused.group and refused.group.own else (None, None)
        dropped = Dropped(
            prompt_index=prompt_index,
            reason=refused.reason,
            length_mean=means[0],
            reward_mean=means[1],
            at=time.time(),
            detail=refused.detail,
            staleness=refused.staleness,
            lag=refused.group.lag if refused.group else None,
        )
        self._metrics.drop(dropped, dead_letter)
        self._files.dropped.append(plain(dropped))
        group_id = refused.group.group_id if refused.group else None
        self._log.warning("group dropped", group_id=group_id, reason=refused.reason, detail=refused.detail)

    def _release(self, prompt_index: int) -> None:
        if prompt_index >= 0:
            self._patiently("free a group's credit", lambda: self._reader.release([prompt_index]))

    def _bury(self, entry: Entry, refused: Refused) -> None:
        """Ends a group as a dead letter: what it was is kept, its entry and its credit are free."""
        self._ledger.bury(entry.prompt_index, refused.reason)
        self._note(entry.prompt_index, refused, dead_letter=True)
        server = refused.group.server_id if refused.group else ""
        letter = Letter(entry.group_id, entry.prompt_index, refused.reason, refused.detail, server, time.time())
        self._patiently("keep a dead letter", lambda: self._reader.dead_letter(entry, letter, self._dead_letter_bytes))
