"""One sentence on how the run is doing, how much attention it needs, and the four numbers that it rests on.

Weight lost is 1 - ess. Its limits lie on a logarithmic scale between what is lost on the same weights (the run's own
numerics floor) and everything: a run whose floor is .90 cannot be asked for .95.

    lost   floor        floor^(1/3)        floor^(1/10)        1
           |    good    |       warn       |        bad        |
    ess    .999         .90                .50                 0      where the floor is .999
    ess    .90          .54                .21                 0      where the floor is .90
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

from services.status import RunStatus

Level = Literal["idle", "good", "warn", "bad"]
Row = Mapping[str, Any]

BEST_FLOOR = 1e-3  # a floor that loses less is as good as none: nobody misses a thousandth of the weight
WARN_AT, BAD_AT = 1 / 3, 1 / 10  # powers of the floor
FLOOR_WARN, FLOOR_BAD = 1e-2, 1e-1  # weight lost on the same weights
MASS_WARN, MASS_BAD = 0.1, 0.3  # of the weight, on one hundredth of the tokens; 1 % where all count alike


@dataclass(frozen=True)
class Part:
    """One thing that the verdict rests on."""

    level: Level
    sentence: str
    numbers: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """How the run is doing."""

    level: Level
    sentence: str
    parts: Mapping[str, Part] = field(default_factory=dict)  # ess, floor, staleness, concentration, as far as known


def verdict(status: RunStatus) -> Verdict:
    """The most important thing to know about the run now."""
    parts = parts_of(status, status.recent or ([status.last] if status.last else []))
    level, sentence = _ended(status) or _standing(status) or _halting(status) or _training(status.last or {}, parts)
    return Verdict(level, sentence, parts)


def parts_of(status: RunStatus, rows: Sequence[Row]) -> dict[str, Part]:
    """What is known of these steps, part by part: medians, so that one batch does not turn the verdict."""
    recent = [row for row in rows if not row.get("skipped")]
    floor_ess = _floor_ess(status, recent)
    found = {
        "ess": _ess(recent, floor_ess),
        "floor": _floor(status, recent, floor_ess),
        "staleness": _staleness(recent),
        "concentration": _concentration(recent),
    }
    return {name: part for name, part in found.items() if part is not None}


def figure(value: float | None) -> str:
    """An ESS or a share as short as it says something: .93, .9993, 1."""
    if value is None or not math.isfinite(value):
        return "unknown"
    if value > 1 - 5e-7:
        return "1"
    digits = max(2, -math.floor(math.log10(1 - value)))
    return f"{value:.{digits}f}".removeprefix("0")


def _ended(status: RunStatus) -> tuple[Level, str] | None:
    because = f": {status.reason}" if status.reason else ""
    if status.phase == "finished":
        return "good", f"The run is finished{because}."
    if status.phase == "failed":
        return "bad", f"The run has failed{because}."
    if status.phase == "stopped":
        return "idle", f"The run was stopped{because}. It can be resumed."
    return None


def _standing(status: RunStatus) -> tuple[Level, str] | None:
    """Nothing is trained now."""
    learner = status.member("learner")
    if learner is not None and not learner.alive:
        return "bad", "The learner sends no heartbeat any more: nothing is trained until it is back."
    if status.paused:
        who = status.paused_by or "operator"
        return "idle", f"Paused by the {who}: nothing is drawn or trained until the run is resumed."
    return _starting(status) if status.last is None else None


def _halting(status: RunStatus) -> tuple[Level, str] | None:
    """Something is trained, but not everybody is there."""
    if not any(member.alive for member in status.of_kind("rollout")):
        return "bad", "No rollout server is alive: the learner gets no new groups."
    silent = [member.component for member in status.members if not member.alive]
    return ("warn", f"Training goes on, but {_listed(silent)} sent no heartbeat lately.") if silent else None


def _starting(status: RunStatus) -> tuple[Level, str]:
    working = [member for member in status.members if member.kind != "control-plane"]
    waiting = [f"{member.component} ({member.state})" for member in working if member.state]
    if not waiting:
        return "idle", "Starting: neither learner nor rollout server has reported yet."
    if not any(member.kind == "rollout" for member in working):
        waiting.append("no rollout server is there yet")
    return "idle", f"Starting: {'; '.join(waiting)}."


def _training(last: Row, parts: Mapping[str, Part]) -> tuple[Level, str]:
    """The worst part speaks; what is worst in two parts is said by the one that explains more."""
    if last.get("skipped"):
        return "bad", f"The newest batch was not trained on: {last['skipped']}."
    if "ess" not in parts:
        return "warn", "Training, but the newest step carries no token_ess."
    for level in ("bad", "warn"):
        for name in ("floor", "concentration", "ess"):
            if name in parts and parts[name].level == level:
                return level, parts[name].sentence
    ess, rest = parts["ess"].numbers["token_ess"], []
    if "staleness" in parts:
        rest.append(f"staleness {parts['staleness'].numbers['max']}")
    if "floor" in parts:
        rest.append(f"floor {figure(parts['floor'].numbers['token_ess'])}")
    return "good", f"Trusted: ESS {figure(ess)}; {', '.join(rest)}." if rest else f"Trusted: ESS {figure(ess)}."


def _ess(rows: Sequence[Row], floor_ess: float | None) -> Part | None:
    values = _numbers(rows, "token_ess")
    if not values or rows[-1].get("token_ess") is None:
        return None
    ess = median(values)
    floor = max(BEST_FLOOR, 1 - (1.0 if floor_ess is None else floor_ess))
    limits = {"warn_below": 1 - floor**WARN_AT, "bad_below": 1 - floor**BAD_AT}
    level: Level = "bad" if ess < limits["bad_below"] else "warn" if ess < limits["warn_below"] else "good"
    against = "" if floor_ess is None else f" against a floor of {figure(floor_ess)}"
    by = _blamed(rows)
    words = f"ESS {figure(ess)}{against}{f', lost mostly on {by}' * bool(by)}"
    said = {
        "bad": f"Do not lean on this data: {words}. The batch has lost most of its weight.",
        "warn": f"With care: {words}. Part of the batch counts little.",
    }
    sequence = _numbers(rows, "sequence_ess")
    numbers = {"token_ess": ess, "sequence_ess": median(sequence) if sequence else None, "mostly": by, **limits}
    return Part(level, said.get(level, f"{words}."), numbers)


def _floor_ess(status: RunStatus, rows: Sequence[Row]) -> float | None:
    """ESS on the same weights: of the newest tokens of staleness 0, else the worst that a living server proved."""
    measured = _numbers(rows, "floor_token_ess")
    if measured:
        return measured[-1]
    servers = [member.values for member in status.of_kind("rollout") if member.alive]
    said = [value for value in _numbers(servers, "floor_token_ess") if 0 <= value <= 1]  # whatever else they say
    return min(said, default=None)


def _floor(status: RunStatus, rows: Sequence[Row], ess: float | None) -> Part | None:
    if ess is None:
        return None
    servers = [member.values for member in status.of_kind("rollout") if member.alive]
    nats = _numbers(rows, "floor_mean_nats")[-1:] or _numbers(servers, "floor_mean_nats")
    level: Level = "bad" if 1 - ess > FLOOR_BAD else "warn" if 1 - ess > FLOOR_WARN else "good"
    by = f" by {max(nats):.2g} nats a token" if nats else ""
    text = f"Engine and learner differ on the same weights{by}: floor {figure(ess)}, whatever the staleness."
    said = f"Engine and learner agree on the same weights: floor {figure(ess)}." if level == "good" else text
    return Part(level, said, {"token_ess": ess, "mean_nats": max(nats, default=None)})


def _staleness(rows: Sequence[Row]) -> Part | None:
    if not rows or rows[-1].get("staleness_max") is None:
        return None
    last = rows[-1]
    numbers = {name: last.get(f"{name}_mean") for name in ("lag", "flight", "queue")}
    known = {name: value for name, value in numbers.items() if value}
    most = max(known, key=known.__getitem__, default="")
    oldest = last["staleness_max"]
    text = f"The oldest token is {oldest} version{'' if oldest == 1 else 's'} old{f', mostly {most}' * bool(most)}."
    return Part("good", text, {"mean": last.get("staleness_mean"), "max": oldest, **numbers})


def _concentration(rows: Sequence[Row]) -> Part | None:
    values = _numbers(rows, "top_1_percent_mass")
    if not values:
        return None
    mass = median(values)
    level: Level = "bad" if mass > MASS_BAD else "warn" if mass > MASS_WARN else "good"
    by = _blamed(rows)
    where = f", mostly {by}" if by else ""
    carry = f"1 % of the tokens carry {100 * mass:.0f} % of the weight"
    said = f"{carry}." if level == "good" else f"Ratios concentrate: {carry}{where}."
    largest = _numbers(rows[-1:], "largest_weight_share")
    numbers = {"tokens_share": 0.01, "weight_share": mass, "largest": max(largest, default=None), "mostly": by}
    return Part(level, said, numbers)


def _blamed(rows: Sequence[Row]) -> str:
    """The staleness bucket and the server that most of the lost weight falls on; of one alone nothing is said."""
    named = []
    for key, word in (("by_staleness", "staleness"), ("by_server", "server")):
        lost = lost_by(rows[-1].get(key) or {})
        worst = max(lost, key=lost.__getitem__, default="")
        if len(lost) > 1 and lost[worst] > sum(lost.values()) / 2:
            named.append(f"{word} {worst}")
    return ", ".join(named)


def lost_by(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """What each part of the tokens adds to chi2 = 1/ess - 1 of all of them: s^2 / (t ess) - 2 s + t.

    t and s are its shares of the tokens and of the ratios' sum, and (w - mean w)^2 is what is summed. Where s is not
    known it is taken for t: mean ratios are close to 1.
    """
    known = {name: part for name, part in parts.items() if part.get("tokens") and part.get("token_ess")}
    tokens = sum(part["tokens"] for part in known.values())
    found = {}
    for name, part in known.items():
        share = part["tokens"] / tokens
        weight = part.get("weight_share")
        weight = share if weight is None else weight
        found[name] = weight**2 / (share * part["token_ess"]) - 2 * weight + share
    return found


def _numbers(rows: Iterable[Row], name: str) -> list[float]:
    """The finite values, in order."""
    values = (row.get(name) for row in rows)
    return [float(v) for v in values if isinstance(v, int | float) and math.isfinite(v)]


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
