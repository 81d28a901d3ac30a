"""The store on a real S3 protocol server, on loopback."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.config import Config, load_config
from shared.errors import ConfigError, StoreError
from shared.store import open_store
from tests.shared.store.versions import WEIGHTS, Weights, publish, publish_patch

pytestmark = pytest.mark.system  # the server's libraries take seconds to load


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ann")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def bucket(endpoint: str) -> str:
    import s3fs

    files = s3fs.S3FileSystem(client_kwargs={"endpoint_url": endpoint}, skip_instance_cache=True)
    if not files.exists("policies"):
        files.mkdir("policies")
    return "s3://policies/runs/r1"


def config(tmp_path: Path, *overrides: str) -> Config:
    return load_config(None, [f"run.folder={tmp_path}", "store.part_bytes=64KiB", *overrides], {})


def test_versions_go_through_s3_and_come_back_byte_for_byte(bucket: str, endpoint: str, tmp_path: Path) -> None:
    here = config(tmp_path, f"store.url={bucket}", f"store.endpoint={endpoint}")
    weights, learner, server = Weights(size=300_000), open_store(here), open_store(here, "r0")
    assert server.versions() == []
    publish(learner, weights, 0)
    for version in (1, 2):
        publish_patch(learner, weights, version, version - 1)
    assert server.versions() == [0, 1, 2]
    for version in (2, 1, 2):
        assert (server.hold(version, "r0")[1] / WEIGHTS).read_bytes() == weights.at(version)
        server.let_go("r0")
    with pytest.raises(StoreError, match="version 1 is published already"):
        open_store(config(tmp_path / "other", f"store.url={bucket}", f"store.endpoint={endpoint}")).begin(1)
    publish(learner, weights, 3)
    learner.begin(4)
    with pytest.raises(StoreError, match="version 4 was begun already, by another learner"):
        open_store(config(tmp_path / "other", f"store.url={bucket}", f"store.endpoint={endpoint}")).begin(4)
    assert learner.retain([3], 3) == [0, 1, 2]
    assert learner.begun() == [3, 4]
    with pytest.raises(StoreError, match="version 2 is not in s3://policies/runs/r1"):
        server.hold(2, "r0")


def test_what_cannot_be_reached_or_entered_is_said_with_what_to_do(
    bucket: str, endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StoreError, match=r"no answer .*see that the address is right"):
        open_store(config(tmp_path, f"store.url={bucket}", "store.endpoint=http://127.0.0.1:9", "store.timeout_s=1"))
    with pytest.raises(ConfigError, match=r"store\.url nfs9://x/y: .*a folder, s3:// or http:// can be one"):
        open_store(config(tmp_path, "store.url=nfs9://x/y"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(StoreError, match="see that AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        open_store(config(tmp_path, f"store.url={bucket}", f"store.endpoint={endpoint}"))
