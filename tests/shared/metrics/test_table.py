"""The table of metrics: every process makes all of its own, the page is made of it, and Prometheus finds no fault."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from shared.metrics import ControlPlaneMetrics, LearnerMetrics, RolloutMetrics
from shared.metrics.__main__ import main
from shared.metrics.made import Made
from shared.metrics.page import MARK, rewritten
from shared.metrics.table import CONTROL_PLANE, LEARNER, PREFIX, ROLLOUT, Metric
from shared.records import StepRecord
from tests.services.rows import step

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "deploy" / "docs" / "metrics.md"
PROMTOOL = ROOT / ".cache" / "prometheus" / "promtool"
PROCESSES = [(LearnerMetrics, LEARNER), (RolloutMetrics, ROLLOUT), (ControlPlaneMetrics, CONTROL_PLANE)]
each_process = pytest.mark.parametrize(("process", "table"), PROCESSES)


def filled(process: Any) -> CollectorRegistry:
    """A process's registry with a sample of every metric."""
    metrics = process()
    for made in vars(metrics).values():
        for metric in made.values() if isinstance(made, dict) else (made,):
            for one in metric.values() if isinstance(metric, dict) else (metric,):
                if names := getattr(one, "_labelnames", ()):
                    one.labels(*("some" for _ in names))
    if isinstance(metrics, LearnerMetrics):
        metrics.staleness.observe([1], [1])
        metrics.staleness_parts.observe([1], [1], label="lag")
        numbers = dict.fromkeys((m.field.split(".")[-1] for m in LEARNER if m.field), 0.5) | {"groups": 1}
        parts = {name: {"some": numbers} for name in ("by_staleness", "by_environment", "by_server", "by_position")}
        shadows = [{**numbers, "objective": "grpo"}]
        metrics.observe(StepRecord(**{**step(1), **parts, "by_arm": {"control": numbers}, "shadows": shadows}))
    registry: CollectorRegistry = metrics.registry
    return registry


@each_process
def test_a_process_exports_what_the_table_says_and_nothing_else(process: Any, table: tuple[Metric, ...]) -> None:
    text = generate_latest(filled(process)).decode()
    families = [f for f in text_string_to_metric_families(text) if not f.name.endswith("_created")]
    assert {(f.name, f.type, f.documentation) for f in families} == {
        (PREFIX + metric.name, metric.kind, metric.text) for metric in table
    }
    assert all(family.samples for family in families)
    for metric in table:
        family = next(f for f in families if f.name == PREFIX + metric.name)
        assert {label for s in family.samples for label in s.labels} - {"le"} == set(metric.labels), metric.name


@each_process
def test_prometheus_finds_no_fault_with_what_is_scraped(process: Any, table: tuple[Metric, ...]) -> None:
    tool = shutil.which("promtool") or (str(PROMTOOL) if PROMTOOL.exists() else None)
    if tool is None:
        pytest.skip("no promtool on PATH or in .cache/prometheus (deploy/prometheus/fetch.sh puts one there)")
    text = generate_latest(filled(process))
    done = subprocess.run([tool, "check", "metrics"], input=text, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_names_are_said_once_and_units_are_in_the_names_that_need_one() -> None:
    for _, table in PROCESSES:
        names = [metric.name for metric in table]
        assert len(names) == len(set(names))
        for metric in table:
            assert metric.text.endswith("."), metric.name
            if metric.unit in ("seconds", "bytes"):
                assert metric.unit in metric.name, metric.name


def test_the_page_is_made_of_the_table() -> None:
    page = PAGE.read_text()
    assert rewritten(page) == page, "make it anew: python -m shared.metrics --write deploy/docs/metrics.md"
    for _, table in PROCESSES:
        for metric in table:
            assert f"`{metric.exported}`" in page.partition(MARK)[2]


def test_the_command_prints_the_tables_and_makes_a_page_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([]) == 0
    tables = capsys.readouterr().out
    assert "| `trustbatch_token_ess` | gauge | share | `token_ess` |" in tables
    page = tmp_path / "page.md"
    page.write_text(f"# Head\n\n{MARK}\n\nold\n")
    assert main(["--write", str(page)]) == 0
    assert page.read_text() == f"# Head\n\n{MARK}\n\n{tables}"
    page.write_text("# Head\n")
    assert main(["--write", str(page)]) == 1
    assert "has no line" in capsys.readouterr().err


def test_a_metric_is_made_as_what_it_is() -> None:
    with pytest.raises(TypeError, match="steps is a counter, not a gauge"):
        Made(LEARNER).gauge("steps")
