"""What the controller does next: a pure function of its rules, its memory, and what it sees.

                   6 x low: halves the larger            6 x low, nothing left to halve,
    +----------+   of lag and max_staleness   +----------+   or 6 x collapsed   +--------+   6 x collapsed   +--------+
    | watching | ---------------------------> | narrowed | -------------------> | synced | ----------------> | paused |
    +----------+                              +----------+                      +--------+                   +--------+
         ^                                       |      ^   12 x good: a version   |  ^     the operator        |
         `---- all that the operator wants ------'      `--------------------------'  `---------- resumes ------'
                  12 x good: a quarter wider

Halving brings trust back in a few actions however far the staleness has gone. A quarter wider makes the loss, where it
grows with the square of the staleness, 1.56 times as large: less than the factor 2 that lies between "good" and too
much, so a widening does not cause the next fall. Where it did all the same (from 1 to 2 the square is 4), the next
widening waits twice as long, and so on: relapses become rare instead of a rhythm.

A change takes as long to be seen as what was drawn before it takes to be trained on: until then low steps narrow no
further, and good ones do not widen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from services.controller.evidence import Vote, vote
from shared.config.controller import ControllerConfig

Level = Literal["watching", "narrowed", "synced", "paused"]
Kind = Literal["narrow", "widen", "sync", "pause"]

Wish = tuple[str, str, str]  # text, by whom, when; as stored
KINDS: tuple[Kind, ...] = ("narrow", "widen", "sync", "pause")
HOUR_S = 3600.0
RESERVED = 3  # actions that widening leaves: to narrow, to sync, to pause
CALM = 2  # times patience: good steps before it widens
LONGEST_CALM = 64  # times that, after relapses


@dataclass(frozen=True)
class Setting:
    """What makes data stale."""

    lag: int  # the largest that any server is asked for, versions
    max_staleness: int  # versions that may be drawn ahead


SYNCHRONOUS = Setting(0, 0)


@dataclass(frozen=True)
class Memory:
    """What the controller remembers; kept in Redis, so that any control plane can go on."""

    lag: int | None = None  # the largest that it lets servers lag; None: the operator's setting
    max_staleness: int | None = None  # that it lets servers draw ahead; None: the operator's setting
    synced: bool = False
    paused: bool = False  # by it, and nobody has resumed yet
    low: int = 0  # steps in a row
    collapsed: int = 0
    good: int = 0  # good steps since the last low one, less those that were neither
    calm: int = 1  # factor on the good steps that a widening waits for
    widened_last: bool = False
    changed_at: int = -1  # policy_version of the last change
    changed_step: int = -1
    step: int = -1  # the last that was looked at
    seen_at: float = -1.0  # its time; -1: none yet
    acted_at: tuple[float, ...] = ()  # unix seconds, of the last hour
    counts: Mapping[str, int] = field(default_factory=dict)  # actions by kind, since the run began
    said: str = ""  # the last action in words
    said_at: float = 0.0
    lag_wish: Wish | None = None  # the operator's, to be restored; None: not looked at yet
    admission_wish: Wish | None = None

    @property
    def level(self) -> Level:
        """Where it stands."""
        if self.paused:
            return "paused"
        return (
            "synced" if self.synced else "watching" if self.lag is None and self.max_staleness is None else "narrowed"
        )


@dataclass(frozen=True)
class Seen:
    """The run as it is now."""

    rows: Sequence[Mapping[str, Any]]  # step records since the last look, oldest first
    wanted: Setting  # by the operator
    version: int  # newest published
    floor: float  # token ESS where nothing is stale
    now: float  # unix seconds


@dataclass(frozen=True)
class Action:
    """One change, and why."""

    kind: Kind
    setting: Setting  # from now on
    because: str


def decide(rules: ControllerConfig, memory: Memory, seen: Seen) -> tuple[Memory, Action | None]:
    """What it remembers from now on, and what it does: at most one thing."""
    for row in seen.rows:
        memory = _count(memory, row, vote(row, rules, seen.floor))
    if not seen.rows or memory.paused:
        return memory, None
    memory = replace(memory, acted_at=tuple(at for at in memory.acted_at if seen.now - HOUR_S < at <= seen.now))
    left, row = actions_left(rules, memory, seen.now), seen.rows[-1]
    action = None
    if left and memory.collapsed >= rules.patience:
        action = _escalate(rules, memory, seen, row)
    if action is None and left and memory.low >= rules.patience:
        action = _narrow(rules, memory, seen, row)
    if action is None and left > RESERVED and memory.good >= CALM * rules.patience * memory.calm:
        action = _widen(memory, seen, row)
    return (memory, None) if action is None else (_after(rules, memory, action, seen), action)


def setting_of(memory: Memory, wanted: Setting) -> Setting:
    """What holds now: never beyond what is wanted."""
    lag = wanted.lag if memory.lag is None else min(memory.lag, wanted.lag)
    ahead = wanted.max_staleness if memory.max_staleness is None else min(memory.max_staleness, wanted.max_staleness)
    return Setting(lag, ahead)


def actions_left(rules: ControllerConfig, memory: Memory, now: float) -> int:
    """What it may still do within the hour."""
    return max(0, rules.actions_per_hour - sum(now - HOUR_S < at <= now for at in memory.acted_at))


def started_anew(memory: Memory, version: int, **changes: Any) -> Memory:
    """After the operator has changed something: no votes, no grudges."""
    votes: dict[str, Any] = {"low": 0, "collapsed": 0, "good": 0, "calm": 1, "widened_last": False}
    return replace(memory, **votes, changed_at=version, changed_step=memory.step, **changes)


# -- votes ------------------------------------------------------------------------------------------
def _count(memory: Memory, row: Mapping[str, Any], said: Vote) -> Memory:
    """One more step. Steps in a row only: after a gap, or a restore, the counting begins anew."""
    step, at = int(row.get("step") or 0), float(row.get("at") or 0.0)
    if step not in (memory.step, memory.step + 1):
        memory = replace(memory, low=0, collapsed=0, good=0)
    memory = replace(memory, step=step, seen_at=at)
    if not _settled(row, memory.changed_at) and (said == "good" or not memory.widened_last):
        return replace(memory, low=0, collapsed=0, good=0)
    low, collapsed = said in ("low", "collapsed"), said == "collapsed"
    return replace(
        memory,
        low=memory.low + 1 if low else 0,
        collapsed=memory.collapsed + 1 if collapsed else 0,
        good=memory.good + 1 if said == "good" else 0 if low else max(0, memory.good - 1),
    )


def _settled(row: Mapping[str, Any], changed_at: int) -> bool:
    """True where nothing in the step was asked for before the last change."""
    waited = int(row.get("flight_max") or 0) + int(row.get("queue_max") or 0)
    return changed_at < 0 or int(row.get("policy_version") or 0) - waited >= changed_at


# -- actions ----------------------------------------------------------------------------------------
def _narrow(rules: ControllerConfig, memory: Memory, seen: Seen, row: Mapping[str, Any]) -> Action | None:
    """Halves what is the larger part of the staleness; where that is as small as it gets, the other; then syncs."""
    now = setting_of(memory, seen.wanted)
    lag, ahead = _mean(row, "lag_mean"), _mean(row, "flight_mean") + _mean(row, "queue_mean")
    if lag + ahead == 0:
        return None  # less of nothing helps nobody
    used = int(row.get("flight_max") or 0) + int(row.get("queue_max") or 0)
    less_lag = replace(now, lag=min(now.lag, max(1, int(row.get("lag_max") or 0))) // 2)
    less_ahead = replace(now, max_staleness=max(1, min(now.max_staleness, used) // 2))
    why = _why(rules, seen, row, memory.low)
    choices = [(less_lag, f"servers are to lag by at most {less_lag.lag} versions instead of {now.lag}")]
    choices.append(
        (less_ahead, f"servers may draw {less_ahead.max_staleness} versions ahead instead of {now.max_staleness}")
    )
    for setting, text in choices if lag >= ahead else reversed(choices):
        if setting.lag < now.lag or setting.max_staleness < now.max_staleness:
            return Action("narrow", setting, f"{why}: {text}")
    return None if now == SYNCHRONOUS else _sync(now, why)


def _escalate(rules: ControllerConfig, memory: Memory, seen: Seen, row: Mapping[str, Any]) -> Action:
    why = _why(rules, seen, row, memory.collapsed)
    now = setting_of(memory, seen.wanted)
    if now != SYNCHRONOUS:
        return _sync(now, why)
    return Action(
        "pause",
        now,
        f"{why}, in the synchronous run: staleness is not what takes it. The run stands still until the operator "
        "resumes it, by the page's button or POST /v1/resume; before that look at the numerics floor, the learning "
        "rate and the flight recorder",
    )


def _sync(now: Setting, why: str) -> Action:
    text = f"lag 0 instead of {now.lag}, nothing drawn ahead instead of {now.max_staleness} versions"
    more = "servers get no work before they serve the newest version"
    return Action("sync", SYNCHRONOUS, f"{why}: the run is synchronous from now on ({text}); {more}")


def _widen(memory: Memory, seen: Seen, row: Mapping[str, Any]) -> Action | None:
    """A quarter wider, at least a version: the part that is farther from what is wanted."""
    now, wanted = setting_of(memory, seen.wanted), seen.wanted
    if now == wanted:
        return None
    more_lag = replace(now, lag=min(wanted.lag, now.lag + max(1, now.lag // 4)))
    more_ahead = replace(
        now, max_staleness=min(wanted.max_staleness, now.max_staleness + max(1, now.max_staleness // 4))
    )
    ahead_first = (now.max_staleness + 1) * (wanted.lag + 1) <= (now.lag + 1) * (wanted.max_staleness + 1)
    why = f"token ESS is {_ess(row)}, and {memory.good} more steps were good than unclear since the last low one"
    if (ahead_first and more_ahead != now) or more_lag == now:
        text = f"servers may draw {more_ahead.max_staleness} versions ahead instead of {now.max_staleness}"
        return Action("widen", more_ahead, f"{why}: {text} (wanted: {wanted.max_staleness})")
    text = f"servers are to lag by at most {more_lag.lag} versions instead of {now.lag}"
    return Action("widen", more_lag, f"{why}: {text} (wanted: {wanted.lag})")


def _after(rules: ControllerConfig, memory: Memory, action: Action, seen: Seen) -> Memory:
    """What is remembered of an action. A fall soon after a widening is a relapse: the next widening waits longer."""
    widened, wanted, now = action.kind == "widen", seen.wanted, action.setting
    calm = memory.calm
    if not widened and memory.widened_last:
        relapse = memory.step - memory.changed_step <= 4 * CALM * rules.patience * calm
        calm = min(LONGEST_CALM, 2 * calm) if relapse else max(1, calm // 2)
    return replace(
        memory,
        lag=None if now.lag >= wanted.lag else now.lag,
        max_staleness=None if now.max_staleness >= wanted.max_staleness else now.max_staleness,
        synced=action.kind in ("sync", "pause"),
        paused=action.kind == "pause",
        low=0,
        collapsed=0,
        good=0,
        calm=calm,
        widened_last=widened,
        changed_at=seen.version,
        changed_step=memory.step,
        said=action.because,
        said_at=seen.now,
        acted_at=(*memory.acted_at, seen.now),
        counts={**memory.counts, action.kind: memory.counts.get(action.kind, 0) + 1},
    )


# -- words ------------------------------------------------------------------------------------------
def _why(rules: ControllerConfig, seen: Seen, row: Mapping[str, Any], steps: int) -> str:
    lag, ahead = _mean(row, "lag_mean"), _mean(row, "flight_mean") + _mean(row, "queue_mean")
    floor = f", floor {seen.floor:.3f}" if seen.floor < 0.9995 else ""
    return (
        f"token ESS is {_ess(row)} (wanted: {rules.token_ess:g}{floor}), {steps} steps in a row below; the largest "
        f"hundredth of the tokens carries {100 * _mean(row, 'top_1_percent_mass'):.0f} % of the weight; staleness is "
        f"{lag + ahead:.1f} versions, {lag:.1f} of them lag"
    )


def _ess(row: Mapping[str, Any]) -> str:
    value = row.get("token_ess")
    return f"{value:.3f}" if isinstance(value, float) else "not known"


def _mean(row: Mapping[str, Any], name: str) -> float:
    value = row.get(name)
    return float(value) if isinstance(value, int | float) else 0.0
