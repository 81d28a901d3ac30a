"""The benchmark of the control plane, on a small run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.bench.control_plane import PROBE, ROUTES, quantiles, table


@pytest.mark.system
def test_every_route_is_measured_beside_its_references(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "services.cli", "bench", "control-plane", "--json", "--servers", "20"]
    options = ["--days", "0.02", "--step-every", "10", "--requests", "2"]
    environ = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run([*command, *options], env=environ, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    references = {"reference: Redis PING", "reference: Redis GET", PROBE}
    assert found["routes"].keys() == {*references, *ROUTES}
    assert found["rows"] == 172
    assert 0 < sum(found["kept"].values()) < found["history_bytes"]
    assert found["routes"]["/v1/servers"]["bytes"] > 20 * 100
    text = table(found)
    assert all(route in text for route in ROUTES)
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_quantiles_are_of_the_requests() -> None:
    assert quantiles([n / 1000 for n in range(1, 101)]) == {"p50_ms": 51.0, "p99_ms": 100.0, "max_ms": 100.0}
