"""What operators may change while the run goes on: heard before every batch, bounded by the configuration, and said.

budgets      how much servers may ask for (shared/budgets.py): credit that is announced, bytes that call for a
             checkpoint; what has been drawn is trained on whatever they are now
learner      a factor of the learning rate in (0, 1], knobs of the objective that the registry calls live
requeues     dead letters that go back into the stream
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from learner.objective.registry import Knob, Objective, build, live_knobs
from learner.objectives import Objectives
from learner.patience import Patience
from shared import untrusted
from shared.budgets import Budgets, budgets
from shared.config import Config
from shared.config.learner import LearnerConfig
from shared.control import LEARNER, ControlState
from shared.errors import OutOfMemoryError
from shared.heartbeat import Heartbeat
from shared.keys import Keys
from shared.letters import NOT_THERE, REQUEUED, letter, requeue
from shared.log import Logger
from shared.redis_client import Client
from shared.wishes import ADMISSION, OBJECTIVE, Wish, Wishes


@dataclass(frozen=True)
class Taken:
    """The learner's settings that count."""

    rate_factor: float = 1.0  # of the learning rate
    knobs: Mapping[str, float] = field(default_factory=dict)  # that somebody set beside the configured ones


class Adjusted:
    """The configuration with what operators want for now."""

    def __init__(
        self,
        config: Config,
        client: Client,
        objectives: Objectives,
        patience: Patience,
        heartbeat: Heartbeat,
        log: Logger,
    ) -> None:
        self._config = config
        self._client = client
        self._keys = Keys(config.run.id)
        self._wishes = Wishes(client, self._keys)
        self._control = ControlState(client, self._keys)
        self._configured = objectives
        self._patience = patience
        self._heartbeat = heartbeat
        self._log = log
        self._heard = Wish()
        self._full = False  # Redis was, when a letter was to go back
        self._taken = Taken()
        self.objectives = objectives
        self.budgets: Budgets = budgets(config, b"")
        self._say(0, "")

    @property
    def learner(self) -> LearnerConfig:
        """The learner's section with the learning rate that counts."""
        learner = self._config.learner
        return learner.model_copy(update={"learning_rate": learner.learning_rate * self._taken.rate_factor})

    @property
    def settings(self) -> dict[str, float]:
        """What counts now, for the step's record."""
        changed = {name: self.objectives.trained.knobs[name] for name in self._taken.knobs}
        return {
            "max_staleness": self.budgets.max_staleness,
            "max_bytes": self.budgets.max_bytes,
            "learning_rate_factor": self._taken.rate_factor,
            **changed,
        }

    def hear(self, step: int) -> None:
        """Takes what is wanted now; `step` optimizer steps are done."""
        admission, wanted = self._patience("hear what is wanted", lambda: self._wishes.read(ADMISSION, OBJECTIVE))
        self.budgets = budgets(self._config, admission.text)
        if wanted != self._heard:
            self._heard = wanted
            self._take(step, wanted)
        for letter_id in self._patience("hear what to requeue", self._wishes.requeues):
            self._requeue(letter_id)

    def _requeue(self, letter_id: str) -> None:
        """Puts it back; at maxmemory it stays where it is, and so does the wish, until there is room."""
        there = self._patience("look at a dead letter", partial(letter, self._client, self._keys, letter_id))
        outcome = self._patience("requeue a dead letter", partial(self._put_back, letter_id))
        if not outcome:
            return
        if there and outcome == NOT_THERE:  # it went back before, and the answer was lost
            outcome = REQUEUED
        self._patience("tell of a dead letter", lambda: self._wishes.requeued(letter_id, outcome, LEARNER))
        self._log.info("requeue", letter=letter_id, outcome=outcome)

    def _put_back(self, letter_id: str) -> str:
        """What became of it; '' at maxmemory, which is said once."""
        try:
            outcome = requeue(self._client, self._keys, letter_id)
        except OutOfMemoryError as error:
            if not self._full:
                self._log.warning("a dead letter waits until Redis has room", letter=letter_id, error=str(error))
            self._full = True
            return ""
        self._full = False
        return outcome

    def _take(self, step: int, wanted: Wish) -> None:
        try:
            taken = _read(wanted.text)
            trained = self._built(taken)
        except ValueError as error:
            self._tell(step, f"not taken: {error}")
            return
        self._taken, self.objectives = taken, replace(self._configured, trained=trained)
        knobs = ", ".join(f"{name} {value:g}" for name, value in taken.knobs.items())
        self._tell(step, f"from step {step + 1}: learning rate x {taken.rate_factor:g}{', ' + knobs if knobs else ''}")

    def _built(self, taken: Taken) -> Objective:
        """The objective with these knobs. Raises ValueError where one may not change, or needs what is not there."""
        configured = self._configured.trained
        live = {knob.name for knob in live_knobs(configured)}
        if unknown := [name for name in taken.knobs if name not in live]:
            may = ", ".join(sorted(live)) or "none"
            raise ValueError(f"{unknown[0]} of {configured.name} may not change while the run goes on; may: {may}")
        built = build(configured.name, {**configured.knobs, **taken.knobs})
        if missing := sorted(built.needs - self._configured.needs):
            raise ValueError(f"that needs {', '.join(missing)}, which the run was not started with")
        return built

    def _tell(self, step: int, text: str) -> None:
        self._log.info("settings", step=step, said=text)
        refused = text if text.startswith("not taken") else ""
        self._say(step, refused)
        self._patience.tell("tell what was taken", lambda: self._control.add_event(OBJECTIVE, text, LEARNER))

    def _say(self, step: int, refused: str) -> None:
        trained = self.objectives.trained
        live = [_described(knob, trained) for knob in live_knobs(trained)]
        said: dict[str, Any] = {
            "name": trained.name,
            "learning_rate_factor": self._taken.rate_factor,
            "knobs": live,
            "since_step": step,
            "refused": refused,
        }
        self._heartbeat.update(objective=said)


def _described(knob: Knob, trained: Objective) -> dict[str, Any]:
    assert knob.bounds is not None, "live knobs are numbers"
    value = trained.knobs.get(knob.name, knob.default)
    return {"name": knob.name, "value": value, "least": knob.bounds.least, "most": knob.bounds.most}


def _read(text: bytes) -> Taken:
    """What a wish asks for. Raises ValueError."""
    wanted = untrusted.json_object(text or None)
    if text and not wanted:
        raise ValueError("it cannot be read")
    factor, knobs = wanted.get("learning_rate_factor", 1.0), wanted.get("knobs", {})
    if not isinstance(factor, int | float) or isinstance(factor, bool) or not 0 < factor <= 1:
        raise ValueError(f"learning_rate_factor must be above 0 and at most 1, not {factor!r}")
    if not isinstance(knobs, dict) or not all(isinstance(k, int | float) and math.isfinite(k) for k in knobs.values()):
        raise ValueError("knobs must be numbers by name")
    return Taken(float(factor), {name: float(value) for name, value in knobs.items()})
