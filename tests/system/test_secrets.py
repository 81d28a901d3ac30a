"""A whole short run with every secret set: none of them is in anything that it writes or shows."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.system.conftest import ROOT, TRUSTBATCH, Run, descendants

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

SECRETS = {
    "TRUSTBATCH__REDIS__PASSWORD": "sesame-redis-0123456789",
    "TRUSTBATCH__CONTROL_PLANE__READ_TOKEN": "sesame-read-0123456789",
    "TRUSTBATCH__CONTROL_PLANE__OPERATE_TOKEN": "sesame-operate-0123456",
}
SHORT = (
    "learner.steps=2",
    "learner.checkpoint_every=1",
    "learner.warmup_steps=0",
    "evaluation.prompts=8",
    "rollout.engine={kind: transformers, device: cpu}",
    "learner.groups_per_batch=8",
)


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_run_writes_and_shows_no_secret(make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    run = make_run("secretive", *SHORT, "control_plane.auth=token").start()
    run.reach_step(1)
    assert run.process is not None
    commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in descendants(run.process.pid)]
    assert len(commands) >= 4, "Redis, control plane, learner, rollout server"
    assert run.wait(120) == 0, run.output
    shown = subprocess.run(
        [*TRUSTBATCH, "config", "show", "--config", str(run.folder / "config.yaml")],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, check=True,
    )  # fmt: skip
    written = files(run.folder)
    assert {"config.yaml", "summary.json", "history.jsonl"} <= {path.name for path in written}
    assert any(path.parent.name == "logs" for path in written)
    assert any("redis" in path.parts for path in written), "its append-only file too"
    everything = {str(path): path.read_bytes() for path in [*written, run.output_file]}
    everything |= {"config show": shown.stdout + shown.stderr, "processes": b"\n".join(commands)}
    for where, data in everything.items():
        assert b"sesame" not in data, where


def test_without_a_token_up_makes_one_that_only_its_owner_can_read(make_run: Callable[..., Run]) -> None:
    run = make_run("tokenless", *SHORT, "control_plane.auth=token").start()
    run.reach_step(1)
    token = run.folder / "operate-token"
    secret = token.read_text().strip()
    assert token.stat().st_mode & 0o077 == 0
    assert len(secret) >= 40
    assert run.wait(120) == 0, run.output
    assert f"token     in {token}: the dashboard asks for it" in run.output
    for path in [*files(run.folder), run.output_file]:
        assert path == token or secret.encode() not in path.read_bytes(), path
