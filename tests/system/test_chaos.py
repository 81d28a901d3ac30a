"""Nothing lost, nothing applied twice: the short form of every chaos scenario, judged from outside."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.registry import SCENARIOS
from tests.chaos.result import ScenarioResult, read

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, ScenarioResult]:
    """Two scenarios at a time; each waits more than it works."""
    out = tmp_path_factory.mktemp("chaos")
    command = [sys.executable, "-m", "tests.chaos", "--short", "--jobs", "2", "--out", str(out)]
    subprocess.run(command, cwd=ROOT, check=False, capture_output=True, timeout=840)
    return {n: read(f) for n in SCENARIOS if (f := out / f"scenario-{n:02}" / "chaos.json").exists()}


@pytest.mark.parametrize("number", SCENARIOS)
def test_the_promises_hold_in_scenario(results: dict[int, ScenarioResult], number: int) -> None:
    assert number in results, "it wrote no result"
    result = results[number]
    assert result.holds, "\n".join(f"{c.what}: {c.found}" for c in result.checks if not c.holds)
