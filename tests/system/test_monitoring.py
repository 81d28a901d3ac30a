"""A real run, scraped by a real Prometheus: what the dashboards show of it, and which alerts its troubles bring."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path

import pytest

from deploy.grafana.boards import BOARDS
from tests.deploy.alerts.faults import FAULTS, Fault
from tests.deploy.alerts.run import MonitoredRun
from tests.deploy.monitoring import binary, numbers, shown, until

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

QUERIES = [(board.uid, panel.title, query) for board in BOARDS for panel in board.panels for query in panel.queries]
DROPPED = "a group was dropped"  # as dashboards say why they may be empty
TOGETHER = (  # they do not hide each other
    "impossible log-probs in completions of one token",
    "log-probs whose ratio has no finite gradient",
    "a server whose engine has other weights than were published",
)
AFTERWARDS = (
    "a Redis with little more memory than it uses",
    "a learner that stands still (SIGSTOP)",
    "all rollout servers killed",
)


def named(text: str) -> Fault:
    [fault] = [fault for fault in FAULTS if fault.text == text]
    return fault


def empty(run: MonitoredRun, reason: str) -> list[str]:
    """Queries that show nothing and may not: those that may be empty for this reason have none any more."""
    asked = [(board, title, query) for board, title, query in QUERIES if query.empty_unless in ("", reason)]
    return [
        f"{board}, {title}: {query.expr}"
        for board, title, query in asked
        if not numbers(run.prometheus.query(shown(query.of_the_run, "10s")))
    ]


def unlabelled(run: MonitoredRun) -> list[str]:
    """Queries whose lines lack a label that their legend names."""
    return [
        f"{board}, {title}: {query.legend}"
        for board, title, query in QUERIES
        for sample in run.prometheus.query(shown(query.of_the_run))
        if not set(re.findall(r"{{(\w+)}}", query.legend)) <= sample["metric"].keys()
    ]


def brings(run: MonitoredRun, *texts: str) -> None:
    """Waits until every alert of these faults has fired, at once or one after the other."""
    missing = {alert for text in texts for alert in named(text).alerts}

    def all_seen() -> bool:
        missing.difference_update(run.prometheus.firing())
        return not missing

    until(f"{missing} after {texts}", 90, all_seen)


def test_every_panel_shows_a_run_that_no_alert_is_about_until_something_is_wrong(tmp_path: Path) -> None:
    binary("prometheus")
    with MonitoredRun(tmp_path) as run:
        run.wait("steps", 120, lambda: len(run.control.history()) >= 10 and run.prometheus.ready())
        still = empty(run, "")
        run.wait(f"something to show: {still}", 60, lambda: not empty(run, ""))
        run.wait("an end to the alerts of the start", 60, lambda: not run.prometheus.firing())
        assert unlabelled(run) == []

        with ExitStack() as faults:
            for text in TOGETHER:
                faults.enter_context(named(text).cause(run))
            brings(run, *TOGETHER)
            run.wait("what is shown of dropped groups", 30, lambda: not empty(run, DROPPED))
        for text in AFTERWARDS:
            with named(text).cause(run):
                brings(run, text)
