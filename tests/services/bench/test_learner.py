"""`trustbatch bench learner` becomes the learner's own benchmark, which services may not import."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.system  # two processes that load torch

ROOT = Path(__file__).parents[3]


def test_the_command_passes_its_options_on_and_prints_what_was_measured() -> None:
    small = ["--shape", "demo", "--vocabulary", "400", "--sequences", "4", "--longest", "80", "--rounds", "1"]
    command = [sys.executable, "-m", "services.cli", "bench", "learner", *small, "--variant", "packed", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["vocabulary"], told["sequences"], set(told["variants"])) == (400, 4, {"packed"})
    assert told["variants"]["packed"]["memory_bytes"] > 0
