"""What the controller does with a row of steps: a table for every arrow of its drawing, and what always holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.controller.decide import (
    HOUR_S,
    Action,
    Memory,
    Seen,
    Setting,
    actions_left,
    decide,
    setting_of,
    started_anew,
)
from shared.config.controller import ControllerConfig
from tests.services.controller.rows import row

RULES = ControllerConfig(patience=3, actions_per_hour=20)
BUSY = ControllerConfig(patience=3, actions_per_hour=240)
WANTED = Setting(lag=16, max_staleness=4)


def seen(rows: Sequence[dict[str, Any]], wanted: Setting = WANTED, now: float = 0.0) -> Seen:
    version = int(rows[-1]["policy_version"]) + 1 if rows else 0
    return Seen(rows, wanted, version, 1.0, now)


def steps(ess: float, count: int, first: int = 1, **changes: Any) -> list[dict[str, Any]]:
    return [row(first + i, ess, **changes) for i in range(count)]


def after(memory: Memory, rows: Sequence[dict[str, Any]], wanted: Setting = WANTED) -> tuple[Memory, Action | None]:
    return decide(RULES, memory, seen(rows, wanted))


def narrowed(lag: int | None, ahead: int | None, **changes: Any) -> Memory:
    return Memory(lag=lag, max_staleness=ahead, step=0, **changes)


@pytest.mark.parametrize(
    ("memory", "rows", "kind", "setting"),
    [
        (Memory(), steps(0.99, 50, lag=16, queue=4), None, None),
        (Memory(), steps(0.8, 2, lag=16, queue=4), None, None),
        (Memory(), steps(0.8, 3, lag=16, queue=4), "narrow", Setting(8, 4)),
        (Memory(), steps(0.8, 3, lag=3, queue=4), "narrow", Setting(16, 2)),  # the larger part
        (Memory(), steps(0.8, 3, lag=6, queue=1), "narrow", Setting(3, 4)),  # what is used, not what is allowed
        (narrowed(1, 2), steps(0.8, 3, lag=1, queue=0), "narrow", Setting(0, 2)),
        (narrowed(0, 4), steps(0.8, 3, queue=3), "narrow", Setting(0, 1)),
        (narrowed(0, 1), steps(0.8, 3, queue=1), "sync", Setting(0, 0)),
        (narrowed(0, 0, synced=True), steps(0.8, 30, queue=1), None, None),  # nothing is left but to pause
        (Memory(), steps(0.8, 30), None, None),  # nothing is stale: less of it helps nobody
        (Memory(), steps(0.2, 3, lag=16, queue=4), "sync", Setting(0, 0)),
        (Memory(), steps(0.2, 3), "sync", Setting(0, 0)),
        (narrowed(0, 0, synced=True), steps(0.2, 3), "pause", Setting(0, 0)),
        (narrowed(0, 0, synced=True, paused=True), steps(0.2, 30), None, None),
        (narrowed(4, 1), steps(0.99, 5, lag=4, queue=1), None, None),
        (narrowed(4, 1), steps(0.99, 6, lag=4, queue=1), "widen", Setting(5, 1)),  # 5/17 of lag, 2/5 of the other
        (narrowed(8, 1), steps(0.99, 6, lag=8, queue=1), "widen", Setting(8, 2)),
        (narrowed(12, None), steps(0.99, 6, lag=12), "widen", Setting(15, 4)),
        (narrowed(15, None), steps(0.99, 6, lag=15), "widen", Setting(16, 4)),
        (narrowed(0, 0, synced=True), steps(0.99, 6), "widen", Setting(1, 0)),
        (narrowed(4, 1, calm=2), steps(0.99, 11, lag=4, queue=1), None, None),
        (narrowed(4, 1), steps(0.93, 50, lag=4, queue=1), None, None),  # neither good nor low: it stays
        (Memory(), [*steps(0.8, 2, lag=8), *steps(0.92, 1, 3, lag=8), *steps(0.8, 2, 4, lag=8)], None, None),
        (Memory(), [*steps(0.8, 2, lag=8), *steps(0.8, 2, 4, lag=8)], None, None),  # step 3 was not seen
        (Memory(), [*steps(0.8, 2, 5, lag=8), *steps(0.8, 1, 3, lag=8)], None, None),  # a restore
        (Memory(), [], None, None),
    ],
)
def test_every_arrow(memory: Memory, rows: list[dict[str, Any]], kind: str | None, setting: Setting | None) -> None:
    remembered, action = after(memory, rows)
    assert (action.kind if action else None, action.setting if action else None) == (kind, setting)
    if action is not None:
        assert setting_of(remembered, WANTED) == setting
        assert remembered.counts == {kind: 1}
        assert (remembered.low, remembered.collapsed, remembered.good) == (0, 0, 0)


def test_the_whole_way_down_and_up_again() -> None:
    memory, levels = Memory(), []
    for step, ess in enumerate([0.8] * 60 + [0.2] * 30, start=1):
        holds = setting_of(memory, WANTED)
        one = row(step, ess, lag=holds.lag, queue=max(1, holds.max_staleness))
        memory, _ = decide(BUSY, memory, seen([one]))
        levels.append(memory.level)
    assert list(dict.fromkeys(levels)) == ["watching", "narrowed", "synced", "paused"]
    memory = started_anew(memory, 90, paused=False)
    levels, kinds = [], set()
    for step in range(91, 600):
        memory, action = decide(BUSY, memory, seen([row(step, 0.999)]))
        levels.append(memory.level)
        kinds.add(action.kind if action else None)
    assert list(dict.fromkeys(levels)) == ["synced", "narrowed", "watching"]
    assert kinds == {None, "widen"}
    assert memory.lag is memory.max_staleness is None


def test_the_pause_says_why_and_how_to_go_on() -> None:
    _, action = after(narrowed(0, 0, synced=True), steps(0.2, 3, top_1_percent_mass=0.4))
    assert action is not None
    assert "token ESS is 0.200 (wanted: 0.9), 3 steps in a row below" in action.because
    assert "carries 40 % of the weight; staleness is 0.0 versions" in action.because
    assert "until the operator resumes it, by the page's button or POST /v1/resume" in action.because


def test_after_a_change_it_waits_until_it_can_be_seen() -> None:
    memory, action = after(Memory(), steps(0.8, 3, lag=16, queue=4))
    assert action is not None
    changed = memory.changed_at
    waiting = [row(4 + i, 0.2, lag=16, queue=4) for i in range(4)]  # drawn before the change
    assert all(r["policy_version"] - 4 < changed for r in waiting)
    memory, action = after(memory, waiting)
    assert (action, memory.low, memory.collapsed) == (None, 0, 0)
    memory, action = after(memory, [row(8 + i, 0.8, lag=8, queue=4) for i in range(3)])
    assert action is not None
    assert action.setting == Setting(4, 4)


def test_a_relapse_makes_the_next_widening_wait_longer_and_is_forgotten_in_time() -> None:
    memory, action = after(narrowed(4, 1), steps(0.99, 6, lag=4, queue=1))
    assert action is not None
    assert action.kind == "widen"
    relapsed, action = after(memory, steps(0.8, 3, 7, lag=5, queue=1))
    assert (action.kind if action else None, relapsed.calm) == ("narrow", 2)
    later, _ = after(memory, steps(0.93, 40, 7, lag=5, queue=1))
    fell, action = after(later, steps(0.8, 3, 47, lag=5, queue=1))
    assert (action.kind if action else None, fell.calm) == ("narrow", 1)


def test_actions_are_bounded_by_the_hour_and_the_last_are_kept_for_narrowing() -> None:
    times = tuple(float(i) for i in range(17))
    tired = narrowed(8, 1, acted_at=times)
    good, low = steps(0.99, 9, lag=8, queue=1), steps(0.8, 3, lag=8, queue=1)
    assert actions_left(RULES, tired, 20.0) == 3
    assert decide(RULES, tired, seen(good, now=20.0))[1] is None
    assert decide(RULES, tired, seen(low, now=20.0))[1] is not None
    spent = replace(tired, acted_at=tuple(float(i) for i in range(20)))
    assert decide(RULES, spent, seen(low, now=20.0))[1] is None
    assert decide(RULES, spent, seen(low, now=HOUR_S + 0.5))[1] is not None, "the first of them is an hour ago"


def test_what_the_operator_wants_is_the_bound_also_when_it_is_lowered() -> None:
    memory = narrowed(8, 2)
    assert setting_of(memory, Setting(4, 1)) == Setting(4, 1)
    assert after(memory, steps(0.99, 20, lag=4, queue=1), Setting(4, 1))[1] is None, "there is nothing to widen"


# -- what always holds ------------------------------------------------------------------------------
WANTS = st.builds(Setting, lag=st.integers(0, 64), max_staleness=st.integers(0, 16))
ROWS = st.lists(
    st.tuples(st.floats(0.001, 1), st.integers(0, 64), st.integers(0, 16), st.sampled_from([4, 64, 1024])), max_size=60
)


def run(given_rows: list[tuple[float, int, int, int]], wants: list[Setting]) -> list[tuple[Memory, Setting, Setting]]:
    """(memory, what was wanted, what held before) after every step; wants change in between, as an operator would."""
    memory, found = Memory(), []
    for i, (ess, lag, queue, completions) in enumerate(given_rows):
        wanted = wants[i * len(wants) // len(given_rows)]
        before = setting_of(memory, wanted)
        one = row(i + 1, ess, min(lag, before.lag), min(queue, before.max_staleness), trajectories=completions)
        memory, _ = decide(RULES, memory, Seen([one], wanted, i + 1, 1.0, 60.0 * i))
        found.append((memory, wanted, before))
    return found


@given(ROWS, st.lists(WANTS, min_size=1, max_size=3))
def test_it_never_goes_beyond_what_is_wanted_nor_acts_too_often(
    rows: list[tuple[float, int, int, int]], wants: list[Setting]
) -> None:
    for memory, wanted, _ in run(rows, wants):
        holds = setting_of(memory, wanted)
        assert 0 <= holds.lag <= wanted.lag
        assert 0 <= holds.max_staleness <= wanted.max_staleness
        assert len(memory.acted_at) <= RULES.actions_per_hour


@given(ROWS, WANTS)
def test_every_action_moves_one_way(rows: list[tuple[float, int, int, int]], wanted: Setting) -> None:
    counts: dict[str, int] = {}
    for memory, _, before in run(rows, [wanted]):
        holds = setting_of(memory, wanted)
        done = [kind for kind, n in memory.counts.items() if n > counts.get(kind, 0)]
        assert len(done) <= 1
        wider = holds.lag > before.lag or holds.max_staleness > before.max_staleness
        narrower = holds.lag < before.lag or holds.max_staleness < before.max_staleness
        assert wider == (done == ["widen"])
        assert not narrower or done in (["narrow"], ["sync"])
        counts = dict(memory.counts)


@given(ROWS, WANTS, st.lists(st.floats(0, 1), min_size=12, max_size=12))
def test_less_trust_never_leads_to_more_staleness(
    rows: list[tuple[float, int, int, int]], wanted: Setting, worse: list[float]
) -> None:
    """From the same memory, the same steps with a lower ESS end nowhere beyond where the others end."""
    history = run(rows, [wanted])
    memory = history[-1][0] if history else Memory()
    holds, first = setting_of(memory, wanted), len(rows) + 1
    ess = [0.5 + 0.5 * share for share in worse]
    future = [row(first + i, value, holds.lag, holds.max_staleness) for i, value in enumerate(ess)]
    lower = [{**r, "token_ess": r["token_ess"] * share} for r, share in zip(future, worse, strict=True)]
    ends = [setting_of(decide(RULES, memory, seen(some, wanted, 1e6))[0], wanted) for some in (lower, future)]
    assert ends[0].lag <= ends[1].lag
    assert ends[0].max_staleness <= ends[1].max_staleness
