"""Grafana's dashboards: made by code, of fields that Grafana knows and metrics that exist."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.grafana.boards import BOARDS
from deploy.grafana.panels import Board, Panel
from tests.deploy.composed import ROOT
from tests.deploy.monitoring import binary, promtool, rules, shown
from tests.deploy.names import exported, metrics_of

FOLDER = ROOT / "deploy" / "grafana"
FILES = sorted((FOLDER / "dashboards").glob("*.json"))
PANELS = [(board, panel) for board in BOARDS for panel in board.panels]
UNITS = {"none", "short", "percentunit", "bytes", "Bps", "s", "reqps"}
panels = pytest.mark.parametrize(("board", "panel"), PANELS, ids=[f"{b.uid}: {p.title}" for b, p in PANELS])


def through_grafanas_types(document: dict[str, Any]) -> Any:
    """A dashboard read into Grafana's own types and written again: what they do not know is gone."""
    register_default_plugins()
    return json.loads(JSONEncoder().encode(Dashboard.from_json(copy.deepcopy(document))))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_grafana_knows_every_field(path: Path) -> None:
    document = json.loads(path.read_text())
    assert through_grafanas_types(document) == document


def test_an_unknown_field_would_be_seen() -> None:
    document = json.loads(FILES[0].read_text())
    document["panels"][1]["fieldConfig"]["defaults"]["units"] = "s"
    assert through_grafanas_types(document) != document


def test_there_is_a_file_for_every_board_and_no_other() -> None:
    assert {path.stem for path in FILES} == {board.uid for board in BOARDS}
    assert len({board.title for board in BOARDS}) == len(BOARDS)


@panels
def test_a_panel_says_what_it_shows_and_asks_for_what_there_is(board: Board, panel: Panel) -> None:
    assert panel.title
    assert panel.unit in UNITS
    assert panel.description.endswith(".")
    assert panel.queries
    known = exported() | {r.get("record") for r in rules()}
    for query in panel.queries:
        asked = metrics_of(query.expr)
        assert asked
        assert asked <= known | {"up", "ALERTS"}
        assert query.of_the_run.count('namespace=~"$namespace"') == len(metrics_all(query.expr))


def metrics_all(expr: str) -> list[str]:
    """As metrics_of, each as often as it is there."""
    return [name for name in metrics_of(expr) for _ in range(expr.count(name))]


def test_no_two_panels_of_a_board_have_one_title() -> None:
    for board in BOARDS:
        titles = [panel.title for panel in board.panels]
        assert len(set(titles)) == len(titles), board.uid


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_panels_have_numbers_of_their_own_and_do_not_lie_on_each_other(path: Path) -> None:
    found = json.loads(path.read_text())["panels"]
    assert len({panel["id"] for panel in found}) == len(found)
    taken: set[tuple[int, int]] = set()
    for panel in found:
        x, y, w, h = (panel["gridPos"][key] for key in "xywh")
        assert x + w <= 24
        cells = {(column, row) for column in range(x, x + w) for row in range(y, y + h)}
        assert not cells & taken, panel["title"]
        taken |= cells


def test_prometheus_can_parse_every_query(tmp_path: Path) -> None:
    binary("promtool")
    expressions = sorted({shown(query.of_the_run) for _, panel in PANELS for query in panel.queries})
    records = [{"record": f"query:{i}", "expr": expr} for i, expr in enumerate(expressions)]
    (tmp_path / "queries.yml").write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": records}]}))
    done = promtool("check", "rules", str(tmp_path / "queries.yml"))
    assert done.returncode == 0, done.stderr


def test_the_provisioned_source_is_the_one_that_the_dashboards_find() -> None:
    [source] = yaml.safe_load((FOLDER / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert source["type"] == "prometheus"
    for path in FILES:
        variables = {found["name"]: found for found in json.loads(path.read_text())["templating"]["list"]}
        assert variables["datasource"]["query"] == source["type"], "any Prometheus, the provisioned one first"
        assert variables["namespace"]["allValue"] == ".*", "outside Kubernetes there is no such label"
