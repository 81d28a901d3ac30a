"""How a run on this machine ended, in words for the operator and in a few for the summary."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from services.children import Child, death_notice
from services.history import History
from services.run_folder import CONFIG
from shared.config import Config, secrets
from shared.config.secrets import SECRET_KEYS
from shared.errors import TrustbatchError

COLLAPSED = 0.1  # token ESS


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    exit_code: int
    reason: str
    summary: dict[str, Any] | None = None
    short: str = ""  # the reason for the summary, where its first line is not it


class ChildDied(TrustbatchError):
    """A process of the run ended although nobody had asked it to. `short` says it without the log."""

    def __init__(self, text: str, short: str) -> None:
        super().__init__(text)
        self.short = short

    @classmethod
    def of(cls, dead: Sequence[Child], why: str = "") -> ChildDied:
        """Of the processes that are dead, with the run's own word for why."""
        short = why or " and ".join(f"{child.name} {child.ended()}" for child in dead)
        return cls("\n".join(part for part in (why, death_notice(dead)) if part), short)


def went_far(history: History) -> tuple[float, int] | None:
    """(token ESS, step) of the first step that lost nearly all of its batch's weight, if there is one."""
    rows = [(row["token_ess"], row["step"]) for row in history.rows if row.get("token_ess") is not None]
    return next(((ess, step) for ess, step in rows if ess < COLLAPSED), None)


def stopped(signum: str, config: Config) -> Outcome:
    """The operator's signal ended it; says the command that goes on with this very run."""
    short = f"stopped by {signum}"
    return Outcome(128 + signal.Signals[signum], f"{short}{_way_on(config)}", short=short)


def _way_on(config: Config) -> str:
    stored = config.run.folder / CONFIG
    if not stored.is_file():
        return ""
    given = sorted(key for key in SECRET_KEYS if secrets.get(config, key) is not None)
    again = f" (give it {', '.join(given)} again: a run does not store them)" if given else ""
    return f"; go on with it{again}:\n  trustbatch up --config {shlex.quote(str(stored))} --resume"
