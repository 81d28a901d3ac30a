"""Between the numbers that the controller decides on and the wishes that are stored for servers and learner. Pure."""

from __future__ import annotations

from dataclasses import replace

from services.controller.decide import Action, Memory, Setting, Wish, started_anew
from shared.budgets import Budgets, budgets
from shared.config import Config
from shared.config.lag import LagSetting, to_wish
from shared.steering import CONTROLLER, Wanted


def follow(memory: Memory, wishes: Wanted, version: int) -> tuple[Memory, str]:
    """Takes note of what the operator has changed since; the text says what, '' for nothing."""
    changed = []
    lag, admission = (wishes.lag, wishes.lag_by, wishes.lag_at), _admission_of(wishes)
    if memory.lag_wish is None or wishes.lag_by != CONTROLLER:
        if memory.lag_wish not in (None, lag):
            memory = started_anew(memory, version, lag=None, synced=False)
            changed.append("the lag")
        memory = replace(memory, lag_wish=lag)
    if memory.admission_wish is None or wishes.admission_by != CONTROLLER:
        if memory.admission_wish not in (None, admission):
            memory = started_anew(memory, version, max_staleness=None, synced=False)
            changed.append("admission")
        memory = replace(memory, admission_wish=admission)
    if memory.paused and wishes.paused != "1":
        memory = started_anew(memory, version, paused=False)
        changed.append("the pause")
    what = " and ".join(changed)
    return memory, f"somebody else has changed {what}: the controller begins anew from there" if changed else ""


def wanted_by_operator(config: Config, memory: Memory) -> Setting:
    """What the operator wants, in numbers."""
    return Setting(operators_lag(config, memory).largest, _operators_budgets(config, memory).max_staleness)


def operators_lag(config: Config, memory: Memory) -> LagSetting:
    """The lag setting that the operator wants, as servers follow it."""
    lag, _ = _operators(memory)
    return (config.wished_lag(lag[0].encode()) if lag[0] else None) or config.rollout.lag


def fields_of(config: Config, before: Memory, after: Memory, action: Action, now: float) -> dict[str, str]:
    """The fields of the control state's `desired` that an action changes."""
    fields: dict[str, str] = {"paused": "1", "paused_by": CONTROLLER} if action.kind == "pause" else {}
    if after.lag != before.lag:
        fields |= _lag_fields(config, after, now)
    if after.max_staleness != before.max_staleness:
        fields |= _admission_fields(config, after, now)
    return fields


def corrected(config: Config, memory: Memory, wanted: Wanted, now: float) -> tuple[Memory, dict[str, str]]:
    """Where the configuration has changed since: the fields that bring the lag that it asks for within that."""
    if memory.lag is None or wanted.lag_by != CONTROLLER:
        return memory, {}
    within = memory if memory.lag < operators_lag(config, memory).largest else replace(memory, lag=None)
    fields = _lag_fields(config, within, now)
    return (memory, {}) if fields["lag"] == wanted.lag else (within, fields)


def _lag_fields(config: Config, memory: Memory, now: float) -> dict[str, str]:
    lag, _ = _operators(memory)
    if memory.lag is not None:
        lag = (to_wish(operators_lag(config, memory).capped(memory.lag)), CONTROLLER, str(now))
    return dict(zip(("lag", "lag_by", "lag_at"), lag, strict=True))


def _admission_fields(config: Config, memory: Memory, now: float) -> dict[str, str]:
    _, admission = _operators(memory)
    if memory.max_staleness is not None:
        narrowed = replace(_operators_budgets(config, memory), max_staleness=memory.max_staleness)
        admission = (narrowed.wish(config).decode(), CONTROLLER, str(now))
    return dict(zip(("admission", "admission_by", "admission_at"), admission, strict=True))


def _operators(memory: Memory) -> tuple[Wish, Wish]:
    return memory.lag_wish or ("", "", ""), memory.admission_wish or ("", "", "")


def _admission_of(wishes: Wanted) -> Wish:
    return wishes.admission, wishes.admission_by, wishes.admission_at


def _operators_budgets(config: Config, memory: Memory) -> Budgets:
    _, admission = _operators(memory)
    return budgets(config, admission[0].encode())
