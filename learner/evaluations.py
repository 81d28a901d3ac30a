"""Held-out evaluations: asked for by the learner, answered by rollout servers, written down here."""

from __future__ import annotations

from learner.files import RunFiles, plain
from learner.lineage import Lineage
from learner.patience import Patience
from shared.control import ControlState, EvaluationResult


class Evaluations:
    """What was asked for, what came back, and whether the target is reached."""

    def __init__(self, control: ControlState, files: RunFiles, patience: Patience, target: float | None) -> None:
        self._control = control
        self._files = files
        self._patiently = patience
        self._target = target
        rows = files.evaluations.rows()
        self._seen = {int(row["policy_version"]) for row in rows}
        self._open = set(patience("read pending evaluations", control.pending_evaluations))
        results = (EvaluationResult(**row) for row in rows)
        self.reached = next((r for r in results if self._reaches(r)), None)  # the first result at the target

    def request(self, version: int) -> None:
        """Asks for an evaluation of this version, or of a later one should it be gone; once."""
        if version in self._seen or version in self._open:
            return
        self._patiently("ask for an evaluation", lambda: self._control.request_evaluation(version))
        self._open.add(version)

    def ask_again(self) -> None:
        """After Redis has lost data: what is open is asked for once more."""
        for version in sorted(self._open):
            self._control.request_evaluation(version)

    def answered(self, version: int) -> bool:
        """True if a requested evaluation has come back."""
        return version not in self._open

    def collect(self, lineage: Lineage) -> list[EvaluationResult]:
        """Writes down results that are new; those of abandoned versions do not count."""
        if not self._open:
            return []
        pending = self._patiently("read pending evaluations", self._control.pending_evaluations)
        results = self._patiently("read evaluations", self._control.evaluations)
        self._open &= set(pending)
        new = [r for r in results if r.policy_version not in self._seen and r.policy_version in lineage]
        self._seen.update(r.policy_version for r in results)
        for result in new:
            self._files.evaluations.append(plain(result))
            if self.reached is None and self._reaches(result):
                self.reached = result
        return new

    def _reaches(self, result: EvaluationResult) -> bool:
        return self._target is not None and result.accuracy >= self._target
