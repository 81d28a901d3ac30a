"""A rollout server that shares no disk with the learner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.config import Config
from shared.config.load import dump_config
from tests.rollout.run import Run, parts_of, serving, small, until

pytestmark = pytest.mark.system
READ = "only-for-looking-0123"


@pytest.fixture
def address(config: Config, tmp_path: Path) -> Iterator[str]:
    """`trustbatch store serve`, as its own process, over the run's folder."""
    file = tmp_path / "near.yaml"
    file.write_text(dump_config(config))
    environ = os.environ | {"TRUSTBATCH__CONTROL_PLANE__READ_TOKEN": READ}
    command = [sys.executable, "-m", "services.cli", "store", "serve", "--config", str(file)]
    command += ["--set", "control_plane.auth=token", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ)
    assert process.stdout is not None
    line = process.stdout.readline()
    yield line.split()[-1].rstrip("/")
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    process.stdout.close()


@pytest.mark.asyncio
async def test_a_server_far_away_draws_with_versions_that_it_fetched_over_http(
    config: Config, address: str, tiny_model: Path, tmp_path: Path
) -> None:
    run = Run(small(config, tiny_model))
    run.publish()
    far = small(config, tiny_model, f"run.folder={tmp_path / 'far'}", f"store.url={address}", f"store.token={READ}")
    async with serving(parts_of(far)) as server:
        await until(lambda: run.unapplied() == 8, "all credit to be used", server)
        run.step()
        run.publish(applied=list(range(4)))
        await until(lambda: len(run.groups()) == 12, "groups of the next version", server)
    versions = {span.policy_version for group in run.groups() for t in group.trajectories for span in t.versions}
    assert versions == {0, 1}
    assert not list((tmp_path / "far").rglob("policy/*")), "nothing of the learner's folder is there"
