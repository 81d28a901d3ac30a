"""Prometheus and promtool, real ones, and the project's rules made fast enough for a test."""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.generate import RULES
from tests.conftest import free_port
from tests.deploy.composed import ROOT

FETCHED = ROOT / ".cache" / "prometheus"
RUNBOOK = ROOT / "deploy" / "docs" / "runbook.md"
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def binary(name: str) -> str:
    """The path of prometheus or promtool; skips the test where there is none."""
    found = shutil.which(name) or str(FETCHED / name)
    if not Path(found).exists():
        pytest.skip(f"no {name} on PATH or in .cache/prometheus (deploy/prometheus/fetch.sh puts one there)")
    return found


def promtool(*words: str) -> subprocess.CompletedProcess[str]:
    """Runs it."""
    return subprocess.run([binary("promtool"), *words], capture_output=True, text=True, check=False, timeout=60)


@functools.cache
def rules() -> tuple[Mapping[str, Any], ...]:
    """Every rule of deploy/prometheus/rules.yml."""
    return tuple(rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"])


def alerts() -> list[str]:
    """The names of all alerts."""
    return [rule["alert"] for rule in rules() if "alert" in rule]


def faster(text: str, factor: float) -> str:
    """Rules with every duration divided: windows and `for`, but none below two seconds, which two scrapes need."""

    def divided(found: re.Match[str]) -> str:
        seconds = int(found[2]) * _UNITS[found[3]] / factor
        return f"{found[1]}{max(2, round(seconds))}s"

    return re.sub(r"(\[|for: )(\d+)([smhd])\b", divided, text)


@dataclass(frozen=True)
class Target:
    """One address to scrape."""

    job: str
    address: str  # host:port


class Prometheus:
    """A real server that scrapes every second and evaluates rules as often, ended by its own handle."""

    def __init__(self, folder: Path, targets: list[Target], rules_text: str) -> None:
        folder.mkdir(parents=True)
        self.port = free_port()
        (folder / "rules.yml").write_text(rules_text)
        jobs: dict[str, list[str]] = {}
        for target in targets:
            jobs.setdefault(target.job, []).append(target.address)
        config = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules.yml"],
            "scrape_configs": [{"job_name": job, "static_configs": [{"targets": t}]} for job, t in jobs.items()],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        words = [binary("prometheus"), f"--config.file={folder / 'prometheus.yml'}"]
        words += [f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{self.port}"]
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(words, stdout=log, stderr=log)

    def ready(self) -> bool:
        """Whether it answers."""
        assert self.process.poll() is None, self._log.read_text()[-2000:]
        try:
            return isinstance(self._get("query", query="1"), dict)
        except OSError:
            return False

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The samples of an instant query, each with `metric` and `value`. Raises AssertionError for a bad one."""
        found: list[dict[str, Any]] = self._get("query", query=expr)["result"]
        return found

    def firing(self) -> set[str]:
        """Names of the alerts that fire now."""
        return {sample["metric"]["alertname"] for sample in self.query('ALERTS{alertstate="firing"}')}

    def stop(self) -> None:
        """Ends it."""
        self.process.kill()
        self.process.wait()

    def _get(self, what: str, **parameters: str) -> Any:
        address = f"http://127.0.0.1:{self.port}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                said = json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error
        return said["data"]


def shown(expr: str, window: str = "1m") -> str:
    """A panel's expression as Grafana would send it, for all namespaces."""
    return expr.replace("$namespace", ".*").replace("$__rate_interval", window)


def numbers(samples: list[dict[str, Any]]) -> list[float]:
    """Values that a line could be drawn through."""
    return [value for sample in samples if (value := float(sample["value"][1])) == value]


def until(what: str, seconds: float, look: Any) -> float:
    """Seconds until `look` is true. Raises AssertionError that says what was waited for."""
    began = time.monotonic()
    while not look():
        waited = time.monotonic() - began
        assert waited < seconds, f"waited {seconds:g} s for {what}"
        time.sleep(0.1)
    return time.monotonic() - began
