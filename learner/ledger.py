"""What became of every group, and when its stream entry may be deleted.

    finished ----> checkpoint n (entry: wait) ----> checkpoint n + 1 durable (entry: delete)

Falling back by one checkpoint thus finds every group that it has to apply again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from shared.intervals import Intervals


class Ledger:
    """Finished prompt indices of this lineage and the entries that wait for deletion."""

    def __init__(self, finished: Intervals | None = None, counts: dict[str, Any] | None = None) -> None:
        self.finished = finished or Intervals()
        self.buried = Intervals(tuple(pair) for pair in (counts or {}).get("buried", ()))  # ended as a dead letter
        self.unannounced: list[int] = []  # applied, their credit not yet free
        self.deletable: list[str] = []  # entry ids
        self.applied = int((counts or {}).get("applied", 0))
        self.duplicates = int((counts or {}).get("duplicates", 0))
        self.dropped: Counter[str] = Counter((counts or {}).get("dropped", {}))
        self._before_checkpoint: list[str] = []
        self._since_checkpoint: list[str] = []
        self._scheduled: set[str] = set()

    def apply(self, prompt_index: int, entry_id: str) -> None:
        """The group ended in an optimizer step."""
        self.finished.add(prompt_index)
        self.unannounced.append(prompt_index)
        self.applied += 1
        self.schedule(entry_id)

    def end(self, prompt_index: int, reason: str) -> None:
        """The group ended without an optimizer step."""
        if prompt_index >= 0:
            self.finished.add(prompt_index)
        self.dropped[reason] += 1

    def bury(self, prompt_index: int, reason: str) -> None:
        """The group ended as a dead letter: a later entry of its prompt gets another chance."""
        self.end(prompt_index, reason)
        if prompt_index >= 0:
            self.buried.add(prompt_index)

    def unbury(self, prompt_index: int) -> None:
        """A dead letter was put back into the stream."""
        self.buried = self.buried.without([prompt_index])
        self.finished = self.finished.without([prompt_index])

    def schedule(self, entry_id: str) -> None:
        """The entry is to be deleted after the next two checkpoints."""
        if entry_id not in self._scheduled:
            self._scheduled.add(entry_id)
            self._since_checkpoint.append(entry_id)

    def is_scheduled(self, entry_id: str) -> bool:
        """True if this very entry was dealt with already (it is read again after a lost connection)."""
        return entry_id in self._scheduled

    @property
    def credited(self) -> Intervals:
        """Finished indices that hold no staleness credit any more."""
        return self.finished.without(self.unannounced)

    @property
    def waiting_entries(self) -> int:
        """Entries that are finished with but still in the stream."""
        return len(self._before_checkpoint) + len(self._since_checkpoint) + len(self.deletable)

    def announced(self) -> None:
        """The applied groups' credit is free."""
        self.unannounced = []

    def checkpointed(self) -> None:
        """A checkpoint with this ledger is durable: what the one before it had finished may go."""
        self.deletable += self._before_checkpoint
        self._before_checkpoint, self._since_checkpoint = self._since_checkpoint, []

    def deleted(self, entry_ids: Iterable[str]) -> None:
        """These entries are gone."""
        gone = set(entry_ids)
        self._scheduled -= gone
        self.deletable = [entry_id for entry_id in self.deletable if entry_id not in gone]

    def counts(self) -> dict[str, Any]:
        """For the checkpoint."""
        counts = {"applied": self.applied, "duplicates": self.duplicates, "dropped": dict(self.dropped)}
        return {**counts, "buried": list(self.buried.pairs())}
