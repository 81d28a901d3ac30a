"""One sentence on how the run is doing, and how much attention it needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from services.status import RunStatus

Level = Literal["idle", "good", "warn", "bad"]

LOW_ESS = 0.5  # below it, more than half of the batch's weight is lost
FALLING_ESS = 0.9


@dataclass(frozen=True)
class Verdict:
    """How the run is doing."""

    level: Level
    sentence: str


def verdict(status: RunStatus) -> Verdict:
    """The most important thing to know about the run now."""
    return _ended(status) or _standing(status) or _halting(status) or _training(status.last or {})


def _ended(status: RunStatus) -> Verdict | None:
    because = f": {status.reason}" if status.reason else ""
    if status.phase == "finished":
        return Verdict("good", f"The run is finished{because}.")
    if status.phase == "failed":
        return Verdict("bad", f"The run has failed{because}.")
    if status.phase == "stopped":
        return Verdict("idle", f"The run was stopped{because}. It can be resumed.")
    return None


def _standing(status: RunStatus) -> Verdict | None:
    """Nothing is trained now."""
    learner = status.member("learner")
    if learner is not None and not learner.alive:
        return Verdict("bad", "The learner sends no heartbeat any more: nothing is trained until it is back.")
    if status.paused:
        who = status.paused_by or "operator"
        return Verdict("idle", f"Paused by the {who}: nothing is drawn or trained until the run is resumed.")
    return _starting(status) if status.last is None else None


def _halting(status: RunStatus) -> Verdict | None:
    """Something is trained, but not everybody is there."""
    if not any(member.alive for member in status.of_kind("rollout")):
        return Verdict("bad", "No rollout server is alive: the learner gets no new groups.")
    silent = [member.component for member in status.members if not member.alive]
    return Verdict("warn", f"Training goes on, but {_listed(silent)} sent no heartbeat lately.") if silent else None


def _starting(status: RunStatus) -> Verdict:
    working = [member for member in status.members if member.kind != "control-plane"]
    waiting = [f"{member.component} ({member.state})" for member in working if member.state]
    if not waiting:
        return Verdict("idle", "Starting: neither learner nor rollout server has reported yet.")
    if not any(member.kind == "rollout" for member in working):
        waiting.append("no rollout server is there yet")
    return Verdict("idle", f"Starting: {'; '.join(waiting)}.")


def _training(last: dict[str, Any]) -> Verdict:
    if last.get("skipped"):
        return Verdict("bad", f"The newest batch was not trained on: {last['skipped']}.")
    ess, staleness = last.get("token_ess"), last.get("staleness_max")
    if ess is None:
        return Verdict("warn", "Training, but the newest step carries no token_ess.")
    age = f"its oldest token is {staleness} version{'' if staleness == 1 else 's'} old"
    if ess < LOW_ESS:
        return Verdict(
            "bad", f"Do not lean on this data: token_ess is {ess:.3f}, the batch has lost most of its weight."
        )
    if ess < FALLING_ESS:
        return Verdict("warn", f"Training with care: token_ess is {ess:.3f}, part of the batch counts little; {age}.")
    return Verdict("good", f"Training well: the batch carries nearly its full weight (token_ess {ess:.3f}); {age}.")


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
