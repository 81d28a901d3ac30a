"""Rollout servers that share no disk with the learner, and a learner whose versions lie elsewhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.config import Config, load_config
from shared.config.load import dump_config
from shared.store import open_store
from tests.learner.conftest import MakeWorld
from tests.learner.conftest import make_world as make_world
from tests.learner.conftest import tiny_folder as tiny_folder
from tests.rollout.conftest import tiny_model as tiny_model
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


def test_a_learner_publishes_to_another_place_and_goes_on_from_there(make_world: MakeWorld, tmp_path: Path) -> None:
    from moto.server import ThreadedMotoServer

    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "someone")
        moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        moto.start()
        host, port = moto.get_host_and_port()
        try:
            import s3fs

            s3fs.S3FileSystem(client_kwargs={"endpoint_url": f"http://{host}:{port}"}).mkdir("policies")
            _publish_elsewhere(make_world, f"http://{host}:{port}", tmp_path)
        finally:
            moto.stop()


def _publish_elsewhere(make_world: MakeWorld, endpoint: str, tmp_path: Path) -> None:
    given = ["store.url=s3://policies/r1", f"store.endpoint={endpoint}", "learner.retain_versions=2"]
    world = make_world(*given)
    learner = world.learner()
    for _ in range(3):
        world.append(4)
        learner.iterate()
    far = load_config(None, [f"run.folder={tmp_path / 'far'}", *given[:2]], {})
    server = open_store(far, "r0")
    assert server.versions() == [2, 3]
    assert server.hold(3, "r0")[0].probe.logprobs == learner.training.parts.policy.sequence_logprobs(
        server.manifest(3).probe.sequences
    )
    learner = world.learner()
    assert learner.training.lineage.latest == 4
    assert 4 in server.versions()
