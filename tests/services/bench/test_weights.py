"""What a version takes on its way is what the logs of learner and server say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from services.bench.weights import read, summary, table


def write(path: Path, *rows: dict[str, Any]) -> None:
    path.write_text("a library's own line\n" + "".join(json.dumps(row) + "\n" for row in rows))


def at(second: float) -> str:
    return f"2026-11-21T10:00:{second:06.3f}Z"


def published(version: int, second: float, base: int = -1) -> dict[str, Any]:
    parts = {"save_s": 0.5, "probe_s": 0.25, "commit_s": 0.25}
    return {
        "event": "published",
        "timestamp": at(second),
        "version": version,
        "stored_bytes": 100,
        "base": base,
        **parts,
    }


def proven(version: int, second: float, attempt: int = 1) -> dict[str, Any]:
    parts = {"fetch_s": 0.1, "stage_s": 0.1, "load_s": 0.3, "pause_s": 0.2, "tensors_s": 0.1, "probe_s": 0.1}
    return {
        "event": "a version is proven",
        "timestamp": at(second),
        "policy_version": version,
        "attempt": attempt,
        **parts,
    }


def test_latency_goes_from_the_first_byte_to_the_proof(tmp_path: Path) -> None:
    write(tmp_path / "learner.jsonl", published(0, 1), published(1, 10), published(2, 20, base=1), published(3, 30))
    write(tmp_path / "rollout-r0.jsonl", proven(0, 5), proven(1, 11), proven(2, 21.5), proven(3, 40, attempt=2))
    passages = list(read(tmp_path))
    assert [(p.version, p.is_patch) for p in passages] == [(1, False), (2, True)], "neither the start nor a retry"
    assert [round(p.latency_s, 6) for p in passages] == [2.0, 2.5]
    reference = {"write_s": 0.1, "read_s": 0.1, "checksum_s": 0.05}
    found = summary(passages, 100, [reference])
    assert found["latency_s"]["times_reference"] == pytest.approx(2.25 / 0.25)
    assert found["bytes_moved_s"]["median"] == pytest.approx(0.5 + 0.25 + 0.1 + 0.1)
    assert (found["pause_s"]["p99"], found["patches"], found["versions"]) == (0.2, 1, 2)
    text = table(found | {"engine": "vllm", "dtype": "float32", "cores": 2, "load_average": 1.0})
    assert "publish begun to proven" in text
    assert "9.00 x" in text


@pytest.mark.system
@pytest.mark.timeout(240)
def test_the_command_measures_a_real_run(tmp_path: Path) -> None:
    words = ["bench", "weights", "--megabytes", "30", "--versions", "3", "--engine", "transformers", "--json"]
    command = [sys.executable, "-m", "services.cli", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=220)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["versions"] >= 1, "servers may pass versions over"
    assert found["bytes"] > 25e6
    assert found["stored_bytes_median"] >= found["bytes"]
    assert all(seconds > 0 for seconds in [*found["reference"].values(), *found["publish"].values()])
    assert 0 < found["pause_s"]["median"] <= found["pickup"]["load_s"]
    assert found["latency_s"]["median"] > found["bytes_moved_s"]["median"] > 0
