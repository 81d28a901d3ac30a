"""Logs: one JSON object a line, with run, component and what the process stands at."""

import json
import subprocess
import sys
from pathlib import Path

CODE = """
import threading
from shared.log import configure, on_every_line
log = configure("r1", "learner")
log.info("started")
on_every_line(policy_version=7)
thread = threading.Thread(target=lambda: log.bind(group_id="r1:3").warning("dropped", reason="too_stale"))
thread.start(); thread.join()
log.debug("not shown")
"""


def test_every_line_is_json_with_run_component_and_the_policy_version() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=root, capture_output=True, text=True, check=True, timeout=60
    )
    first, second = [json.loads(line) for line in done.stderr.splitlines()]
    assert (first["event"], first["run"], first["component"], first["level"]) == ("started", "r1", "learner", "info")
    assert "policy_version" not in first
    assert (second["policy_version"], second["group_id"], second["reason"]) == (7, "r1:3", "too_stale")
    assert second["timestamp"].endswith("Z")
