"""The store over HTTP: who may read what of it, and that a server elsewhere gets every byte."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from starlette.testclient import TestClient

from services.listening import listen
from services.store_server import create_app, serve
from shared.config import Config, load_config
from shared.errors import ConfigError, StoreError
from shared.store import PolicyStore, open_store
from tests.shared.store.versions import WEIGHTS, Weights, publish, publish_patch

READ = "only-for-looking-0123"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load_config(None, [f"run.folder={tmp_path}", f"control_plane.read_token={READ}"], {})


@pytest.fixture
def store(config: Config) -> PolicyStore:
    store = open_store(config)
    for version in range(3):
        if version:
            publish_patch(store, Weights(size=300_000), version, version - 1)
        else:
            publish(store, Weights(size=300_000), 0)
    return store


@pytest.fixture
def http(config: Config, store: PolicyStore) -> TestClient:
    return TestClient(create_app(config, store), headers={"authorization": f"Bearer {READ}"})


@pytest.fixture
def address(config: Config, store: PolicyStore) -> Iterator[str]:
    listening = listen("127.0.0.1", 0, "test")
    server = uvicorn.Server(uvicorn.Config(create_app(config, store), log_level="error", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join(10)
    listening.close()


def elsewhere(tmp_path: Path, address: str, *overrides: str) -> Config:
    given = [f"run.folder={tmp_path / 'far'}", f"store.url={address}", "store.part_bytes=64KiB", *overrides]
    return load_config(None, given, {})


def test_a_server_elsewhere_holds_every_version_byte_for_byte(address: str, tmp_path: Path) -> None:
    server, weights = open_store(elsewhere(tmp_path, address, f"store.token={READ}"), "r0"), Weights(size=300_000)
    assert server.versions() == [0, 1, 2]
    for version in (2, 0, 1):
        assert (server.hold(version, "r0")[1] / WEIGHTS).read_bytes() == weights.at(version)
        server.let_go("r0")
    with pytest.raises(StoreError, match="version 7 is not in http://"):
        server.hold(7, "r0")


def test_without_the_token_it_is_said_which_one_is_needed(address: str, tmp_path: Path) -> None:
    for token in ([], ["store.token=another-token-0123456789"]):
        with pytest.raises(StoreError, match=r"401.*store\.token"):
            open_store(elsewhere(tmp_path, address, *token), "r0")


def test_a_learner_is_not_given_an_address_that_it_cannot_write_to(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="which can only be read: leave it away for the learner"):
        open_store(elsewhere(tmp_path, "http://127.0.0.1:9"))


def test_a_part_is_answered_with_that_part(http: TestClient) -> None:
    path = f"/v00000000/{WEIGHTS}"
    answer = http.get(path, headers={"range": "bytes=100-199"})
    assert (answer.status_code, answer.content) == (206, Weights(size=300_000).at(0)[100:200])
    assert http.get(path, headers={"range": "bytes=900000-900001"}).status_code == 416
    assert http.head(path).headers["content-length"] == "300000"


OUTSIDE = [
    "/", "/v00000000", "/v00000000/", "/held", "/held/r0", "/held/v00000000", "/boot", "/v00000000/stray",
    "/v00000000/link", "/v00000000/..%2fboot", "/v00000000/%2e%2e/boot", "/../boot", "//etc/passwd",
    "/v00000000/%2fetc%2fpasswd", "/v0/config.json", "/v0000000000/config.json", "/v00000009/manifest.json",
    "/v00000009/config.json", "/V00000000/config.json", "/v00000001/model.safetensors", "/v00000000/config.json%00",
    "/v\u0660\u0660\u0660\u0660\u0660\u0660\u0660\u0660/config.json",
]  # fmt: skip


@pytest.mark.parametrize("path", OUTSIDE)
def test_nothing_but_published_files_is_given_away(http: TestClient, store: PolicyStore, path: str) -> None:
    store.hold(0, "r0")
    (store.root / "boot").write_text("secret")
    (store.folder(0) / "stray").write_text("secret")
    (store.folder(0) / "link").symlink_to(store.root / "boot")
    (store.begin(9) / "config.json").write_text("not published yet")
    answer = http.get(path)
    assert answer.status_code == 404
    assert b"secret" not in answer.content


def test_a_listed_file_that_became_a_link_is_not_followed(http: TestClient, store: PolicyStore, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    path = store.folder(0) / "config.json"
    assert http.get("/v00000000/config.json").status_code == 200
    path.unlink()
    path.symlink_to(tmp_path / "secret")
    assert http.get("/v00000000/config.json").status_code == 404


@pytest.mark.parametrize("path", ["/index.json", "/v00000000/manifest.json", f"/v00000000/{WEIGHTS}", "/nothing"])
def test_strangers_read_nothing_and_nobody_writes(http: TestClient, path: str) -> None:
    assert http.get(path, headers={"authorization": ""}).status_code == 401
    assert http.get(path, headers={"authorization": "Bearer wrong-token-000000"}).status_code == 401
    for method in ("PUT", "POST", "DELETE"):
        assert http.request(method, path).status_code in (403, 405)
    assert http.get("/healthz", headers={"authorization": ""}).status_code == 200


def test_it_is_not_opened_to_the_network_without_tokens(tmp_path: Path) -> None:
    here = load_config(None, [f"run.folder={tmp_path}", "control_plane.auth=none"], {})
    with pytest.raises(ConfigError, match="--host must be of this machine alone"):
        serve(here, "0.0.0.0", 0)
