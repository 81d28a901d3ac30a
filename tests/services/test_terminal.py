"""What `trustbatch up` shows, from one look at the run."""

from __future__ import annotations

import io
import math
from dataclasses import asdict, replace

import pytest
from rich.console import Console

from services.progress import Progress, Tracker, duration, seconds_per_step, sparkline, tokens_per_second
from services.terminal import LiveScreen, PlainScreen, ProcessLine, View, draw, line, open_screen, summary_table
from services.verdict import Verdict
from shared.control import EvaluationResult
from tests.services.rows import step
from tests.services.run_status import status

PROGRESS = Progress(
    step=40,
    steps=100,
    reward=0.512,
    rewards=(0.1, 0.3, 0.5),
    accuracy_start=0.2,
    accuracy=0.61,
    token_ess=0.9876,
    ess=(0.99, 0.98, 0.9876),
    staleness_mean=1.25,
    staleness_max=4,
    tokens_per_s=1234.5,
    eta_s=75.0,
    backlog_groups=9,
)
VIEW = View(
    run_id="demo",
    verdict=Verdict("good", "Training well."),
    processes=[
        ProcessLine("learner", "training step 40", 2.0, "version 40"),
        ProcessLine("rollout:r0", "loading vLLM", 12.0),
    ],
    progress=PROGRESS,
    dashboard="http://127.0.0.1:4000/",
    metrics=["http://127.0.0.1:4001/metrics"],
    elapsed_s=61.0,
)


def rendered(view: View) -> str:
    console = Console(file=io.StringIO(), width=110, force_terminal=True, no_color=True)
    console.print(draw(view))
    text = console.file
    assert isinstance(text, io.StringIO)
    return text.getvalue()


def test_the_panel_shows_what_a_person_wants_to_watch() -> None:
    text = rendered(VIEW)
    wanted = [
        "Training well.",
        "step 40 / 100",
        "0.512",
        "0.200 → 0.610",
        "0.9876",
        "1.25 / 4",
        "1,234",
        "backlog 9",
        "1 min 15 s",
    ]
    wanted += [
        "training step 40",
        "version 40",
        "loading vLLM",
        "12 s",
        "http://127.0.0.1:4000/",
        "http://127.0.0.1:4001/metrics",
    ]
    assert [part for part in wanted if part not in text] == []


def test_while_starting_every_process_says_what_it_waits_for_and_how_long() -> None:
    starting = replace(VIEW, progress=None)
    assert line(starting) == "[1 min 01 s] starting  learner: training step 40 (2 s); rollout:r0: loading vLLM (12 s)"
    assert "loading vLLM" in rendered(starting)


def test_one_line_holds_the_numbers() -> None:
    assert line(VIEW) == (
        "[1 min 01 s] step 40/100  reward 0.512  held-out 0.200 → 0.610  token_ess 0.9876  staleness 1.25 / 4  "
        "tokens/s 1,234  backlog 9  ETA 1 min 15 s"
    )


def test_a_pipe_gets_each_address_once_and_few_lines() -> None:
    out = io.StringIO()
    screen = open_screen(Console(file=out, width=200))
    assert isinstance(screen, PlainScreen)
    for _ in range(5):
        screen.show(VIEW)
    assert out.getvalue().count("http://127.0.0.1:4000/") == 1
    assert out.getvalue().count("step 40/100") == 1
    assert "\x1b" not in out.getvalue()


def test_a_terminal_gets_a_live_panel_that_is_taken_away_again() -> None:
    out = io.StringIO()
    screen = open_screen(Console(file=out, force_terminal=True, width=110))
    assert isinstance(screen, LiveScreen)
    screen.show(VIEW)
    screen.say("redis     started")
    screen.show(VIEW)
    screen.close()
    assert "redis     started" in out.getvalue()
    assert out.getvalue().endswith("\x1b[2K"), "the panel's last line is erased"


def test_the_summary_table_leaves_nothing_unsaid() -> None:
    console = Console(file=io.StringIO(), width=120)
    summary = {
        "run_id": "demo",
        "finished_reason": "finished",
        "wall_seconds": 61.0,
        "steps": 1200,
        "groups_lost": None,
    }
    console.print(summary_table({**summary, "groups_dropped": {"too_stale": 3}, "numerics_floor_max_nats": 2e-6}))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for part in ("demo", "1,200", "unknown", "3 too_stale", "2e-06", "1 min 01 s"):
        assert part in text


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "-"), (0.4, "0 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (3720, "1 h 02 min")]
)
def test_durations_read_well(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_a_sparkline_rises_with_its_values_and_survives_anything() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert len(sparkline(range(1000), width=30)) == 30
    assert sparkline([1.0, math.nan, math.inf]) == "▁"
    assert sparkline([]) == ""


def test_a_pause_does_not_slow_the_pace_down() -> None:
    rows = [step(n, at=n + (600.0 if n > 5 else 0.0), tokens=50) for n in range(1, 11)]
    assert seconds_per_step(rows) == 1.0
    assert tokens_per_second(rows) == 50.0
    assert seconds_per_step(rows[:1]) is None


def test_the_tracker_asks_only_for_what_is_new_and_follows_a_restore() -> None:
    tracker = Tracker(10)
    assert tracker.missing(status(last=step(3))) == 3
    tracker.add([step(1), step(2), step(3)])
    assert tracker.missing(status(last=step(3))) == 0
    assert tracker.missing(status(last=step(2))) == 1
    tracker.add([step(2, reward_mean=0.75)])
    results = tuple(EvaluationResult(v, a, 10, 1.0, 1.0, "r0", 1.0) for v, a in ((0, 0.2), (2, 0.4)))
    found = tracker.progress(status(last=step(2), evaluations=results), now=1003.0)
    assert (found.step, found.reward, found.accuracy_start, found.accuracy) == (2, 0.75, 0.2, 0.4)
    assert (found.eta_s, found.stalled_s) == (8.0, None)
    assert found.backlog_groups == 9


def test_a_stall_shows_the_age_of_the_last_step_and_no_eta() -> None:
    tracker = Tracker(10)
    tracker.add([step(1), step(2)])
    assert tracker.progress(status(), now=1006.9).stalled_s is None
    stalled = tracker.progress(status(), now=1014.0)
    assert (stalled.stalled_s, stalled.eta_s) == (12.0, None)
    view = replace(VIEW, progress=stalled)
    assert line(view).endswith("last step 12 s ago")
    assert "last step 12 s ago" in rendered(view)
    assert "ETA" not in line(view) + rendered(view)


def test_steps_that_take_long_are_no_stall() -> None:
    tracker = Tracker(10)
    tracker.add([step(n, at=1000.0 + 60.0 * n) for n in (1, 2, 3)])
    assert tracker.progress(status(), now=1230.0).eta_s == 420.0
    assert tracker.progress(status(), now=1370.0).stalled_s == 190.0


def test_advice_is_shown_before_and_after_the_first_step() -> None:
    for progress in (None, PROGRESS):
        view = replace(VIEW, progress=progress, advice="start one")
        assert line(view).endswith("start one")
        assert "start one" in rendered(view)


def test_the_numbers_of_the_progress_are_plain_data() -> None:
    assert asdict(PROGRESS)["rewards"] == (0.1, 0.3, 0.5)
