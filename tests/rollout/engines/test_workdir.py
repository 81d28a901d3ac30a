"""Temporary folders of engines."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from rollout.engines.workdir import WORKDIR, make_workdir


def test_folders_of_killed_processes_are_removed_and_those_of_living_ones_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead, other = tmp_path / f"{WORKDIR}-{ended.pid}-abc", tmp_path / "not-ours"
    dead.mkdir()
    other.mkdir()
    first, second = make_workdir(), make_workdir()
    assert not dead.exists()
    assert {path.name for path in tmp_path.iterdir()} == {other.name, first.name, second.name}
