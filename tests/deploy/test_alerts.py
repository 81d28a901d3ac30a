"""The alerts: valid, tried, explained, and the same in compose and on Kubernetes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from deploy.generate import RULES, files
from services.cli import app
from shared.config import load_config
from tests.deploy.composed import ROOT, services
from tests.deploy.monitoring import RUNBOOK, alerts, faster, promtool, rules
from tests.deploy.names import exported, metrics_of

CASES = yaml.safe_load((RULES.parent / "rules_test.yml").read_text())["tests"]


def test_prometheus_accepts_configuration_and_rules() -> None:
    done = promtool("check", "rules", "--lint-fatal", str(RULES))
    assert done.returncode == 0, done.stderr
    done = promtool("check", "config", "--syntax-only", str(RULES.parent / "prometheus.yml"))
    assert done.returncode == 0, done.stderr


def test_every_case_of_every_alert_holds() -> None:
    done = promtool("test", "rules", str(RULES.parent / "rules_test.yml"))
    assert done.returncode == 0, done.stderr


def test_promtool_would_object(tmp_path: Path) -> None:
    folder = tmp_path / "rules"
    folder.mkdir()
    one = {"rule_files": ["rules.yml"], "evaluation_interval": "30s", "tests": CASES[:1]}
    (folder / "rules_test.yml").write_text(yaml.safe_dump(one))
    (folder / "rules.yml").write_text(
        RULES.read_text().replace("trustbatch:ess_collapse:ratio > 0.95", "vector(0) > 1")
    )
    done = promtool("test", "rules", str(folder / "rules_test.yml"))
    assert done.returncode == 1
    assert "TrustbatchEssCollapse" in done.stderr


@pytest.mark.parametrize("alert", alerts())
def test_an_alert_is_tried_in_trouble_and_without(alert: str) -> None:
    mine = [case for case in CASES if case["name"].startswith(f"{alert} ")]
    expected = [[str(test["exp_samples"]) for test in case["promql_expr_test"]] for case in mine]
    assert any(
        case["name"].startswith(f"{alert} fires") and alert in str(e) for case, e in zip(mine, expected, strict=True)
    )
    silent = [e for case, e in zip(mine, expected, strict=True) if case["name"].startswith(f"{alert} is silent")]
    assert any("[]" in e for e in silent)
    assert not any("alertname" in str(e) for e in silent)


@pytest.mark.parametrize("rule", [rule for rule in rules() if "alert" in rule], ids=lambda rule: rule["alert"])
def test_an_alert_says_what_it_means_what_to_look_at_and_where_it_is_explained(rule: dict[str, dict[str, str]]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning")
    notes = rule["annotations"]
    assert notes.keys() == {"summary", "description", "runbook_url"}
    assert "Look at" in notes["description"]
    assert notes["runbook_url"] == f"deploy/docs/runbook.md#{str(rule['alert']).lower()}"
    assert (ROOT / notes["runbook_url"].partition("#")[0]).exists()


def test_every_alert_has_its_section_in_the_runbook_and_every_section_its_alert() -> None:
    headings = re.findall(r"^### (\w+)$", RUNBOOK.read_text(), re.MULTILINE)
    assert headings == alerts(), "in the order of the rules"
    sections = re.split(r"^### \w+$", RUNBOOK.read_text(), flags=re.MULTILINE)[1:]
    for name, section in zip(headings, sections, strict=True):
        for part in ("**Means.**", "**Look at.**", "**Do.**"):
            assert part in section, f"{name}: {part}"


def test_the_runbook_names_commands_and_settings_that_there_are() -> None:
    known = {command.name or command.callback.__name__ for command in app.registered_commands}  # type: ignore[union-attr]
    for group in app.registered_groups:
        assert group.typer_instance is not None
        known |= {f"{group.name} {command.name}" for command in group.typer_instance.registered_commands}
    text = " ".join(RUNBOOK.read_text().split())
    commands = re.findall(
        r"(?<!-n )trustbatch ([a-z-]+(?: [a-z-]+)?)(?=[ `])", " ".join(re.findall(r"`([^`]*)`", text))
    )
    assert len(commands) > 10
    for command in commands:
        assert command in known or command.split()[0] in known, command
    sections = {"learner", "rollout", "admission", "store", "redis", "control_plane"}
    keys = {key for key in re.findall(r"`([a-z]+(?:\.[a-z_]+)+)[`:]", text) if key.split(".")[0] in sections}
    assert len(keys) > 8
    for key in keys:
        value: object = load_config(None, ["control_plane.auth=none"], {})
        for name in key.split("."):
            value = getattr(value, name)


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("alert") or rule["record"])
def test_a_rule_asks_for_metrics_that_are_exported_or_recorded(rule: dict[str, str]) -> None:
    known = exported() | {r.get("record") for r in rules()}
    assert metrics_of(rule["expr"]) <= known | {"up"}


def test_what_is_made_of_the_rules_and_of_the_dashboards_code_is_what_lies_there() -> None:
    for path, text in files().items():
        assert path.read_text() == text, f"{path.relative_to(ROOT)}: run `python -m deploy.generate`"


def test_kubernetes_has_the_very_same_groups() -> None:
    path = ROOT / "deploy/kubernetes/components/monitoring/rules.yaml"
    assert yaml.safe_load(path.read_text())["spec"] == yaml.safe_load(RULES.read_text())


def test_compose_gives_prometheus_the_rules_and_grafana_the_dashboards() -> None:
    prometheus, grafana = services()["prometheus"], services()["grafana"]
    [named] = yaml.safe_load((RULES.parent / "prometheus.yml").read_text())["rule_files"]
    assert f"./deploy/prometheus/{named}:/etc/prometheus/{named}:ro" in prometheus["volumes"]
    provider = yaml.safe_load((ROOT / "deploy/grafana/provisioning/dashboards/trustbatch.yml").read_text())
    [folder] = [found["options"]["path"] for found in provider["providers"]]
    assert f"./deploy/grafana/dashboards:{folder}:ro" in grafana["volumes"]


def test_durations_are_divided_and_nothing_else() -> None:
    text = "expr: increase(x[10m]) > 15 and quantile_over_time(0.5, y[6h]) > 0\n  for: 5m\n"
    assert faster(text, 60) == "expr: increase(x[10s]) > 15 and quantile_over_time(0.5, y[360s]) > 0\n  for: 5s\n"
