"""A learner whose versions lie elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.config import load_config
from shared.heartbeat import Heartbeat
from shared.store import PolicyStore, open_store
from tests.learner.conftest import MakeWorld

pytestmark = pytest.mark.system


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

            s3fs.S3FileSystem(client_kwargs={"endpoint_url": f"http://{host}:{port}"}).mkdir("elsewhere")
            _publish_elsewhere(make_world, f"http://{host}:{port}", tmp_path, patch)
        finally:
            moto.stop()


def _publish_elsewhere(make_world: MakeWorld, endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["store.url=s3://elsewhere/r1", f"store.endpoint={endpoint}", "learner.retain_versions=2"]
    world = make_world(*given)
    world.store = PolicyStore(world.config.run.folder / "policy-spool")
    uploaded: list[str] = []  # what the learner said that it did, for each piece that had gone
    monkeypatch.setattr(Heartbeat, "progress", lambda self: uploaded.append(self.status["state"]))
    learner = world.learner()
    for _ in range(3):
        world.append(4)
        learner.iterate()
    assert set(uploaded) == {f"publishing version {version}" for version in range(4)}
    far = load_config(None, [f"run.folder={tmp_path / 'far'}", *given[:2]], {})
    server = open_store(far, "r0")
    assert server.versions() == [2, 3]
    assert server.hold(3, "r0")[0].probe.logprobs == learner.training.parts.policy.sequence_logprobs(
        server.manifest(3).probe.sequences
    )
    learner = world.learner()
    assert learner.training.lineage.latest == 4
    assert 4 in server.versions()
