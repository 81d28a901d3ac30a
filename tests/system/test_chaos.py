"""Nothing lost, nothing applied twice: the short form of every chaos scenario, judged from outside."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.registry import SCENARIOS
from tests.chaos.result import read

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("number", SCENARIOS)
def test_the_promises_hold_in_scenario(number: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.chaos", "--short", "--scenarios", str(number), "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=540)
    report = tmp_path / "chaos.json"
    assert report.exists(), f"it wrote no result:\n{done.stdout}{done.stderr}"
    result = read(report)
    assert result.holds, "\n".join(f"{c.what}: {c.found}" for c in result.checks if not c.holds)
