"""deploy/redis/start.sh on a real Redis, with the secrets that deploy/compose/secrets.sh makes."""

from __future__ import annotations

import os
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shared.config import load_config
from shared.errors import AccessError, StreamError
from shared.redis_client import Client, connect, translated
from tests.conftest import free_port
from tests.redis7 import binary

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.system


def secrets(folder: Path, *options: str) -> Path:
    made = folder / "secrets"
    command = [str(ROOT / "deploy" / "compose" / "secrets.sh"), *options]
    subprocess.run(command, env={**os.environ, "SECRETS": str(made)}, check=True, timeout=60)
    return made


@contextmanager
def started(folder: Path, given: Path, **environ: str) -> Iterator[dict[str, str]]:
    """Redis by its container's own entry point; yields its environment."""
    server = Path(binary())
    if not server.with_name("redis-cli").exists():
        pytest.skip("no redis-cli beside redis-server (deploy/redis/fetch.sh puts one into .cache/redis)")
    (folder / "data").mkdir(exist_ok=True)
    roles = ("LEARNER", "ROLLOUT", "CONTROL_PLANE", "OPERATOR")
    environ = {
        "PATH": f"{server.parent}:{os.environ['PATH']}",
        "REDIS_MAXMEMORY": "64mb",
        "REDIS_PORT": str(free_port()),
        "REDIS_DATA": str(folder / "data"),
        "REDIS_RUN": str(folder),
        **{f"{role}_PASSWORD_FILE": str(given / f"{role.lower()}_password") for role in roles},
        **environ,
    }
    with (folder / "redis.log").open("w") as log:
        process = subprocess.Popen(["sh", str(ROOT / "deploy/redis/start.sh")], env=environ, stdout=log, stderr=log)
    try:
        ends = time.monotonic() + 60
        while ping(environ) != 0:
            assert process.poll() is None, (folder / "redis.log").read_text()
            assert time.monotonic() < ends, (folder / "redis.log").read_text()
            time.sleep(0.05)
        yield environ
    finally:
        process.kill()
        process.wait()


def ping(environ: dict[str, str]) -> int:
    command = ["sh", str(ROOT / "deploy/redis/ping.sh")]
    return subprocess.run(command, env=environ, capture_output=True, check=False, timeout=60).returncode


def client_of(role: str, given: Path, port: str, *overrides: str) -> Client:
    file = given / f"{role.replace('-', '_')}_password"
    named = [f"redis.url=redis://127.0.0.1:{port}", f"redis.username={role}", f"redis.password_file={file}"]
    return connect(load_config(None, [*named, *overrides], {}))


def test_it_has_the_users_never_evicts_and_keeps_what_it_acknowledged(tmp_path: Path) -> None:
    given = secrets(tmp_path)
    with started(tmp_path, given) as environ:
        client = client_of("learner", given, environ["REDIS_PORT"])
        client.set("trustbatch:{mine}:cursor", 7)
        info = client.info()
        assert info["maxmemory_policy"] == "noeviction"
        assert info["maxmemory"] == 64 * 2**20
        assert info["aof_enabled"] == 1
        client.close()
        with pytest.raises(AccessError, match="Redis refuses"):
            connect(load_config(None, [f"redis.url=redis://127.0.0.1:{environ['REDIS_PORT']}"], {})).get("x")
        wrong = {**environ, "OPERATOR_PASSWORD_FILE": str(given / "learner_password")}
        assert ping(wrong) != 0
    with started(tmp_path, given) as environ:  # killed, and started again on the same volume
        client = client_of("learner", given, environ["REDIS_PORT"])
        assert client.get("trustbatch:{mine}:cursor") == b"7"
        client.close()


def test_with_a_certificate_it_speaks_tls_only(tmp_path: Path) -> None:
    given = secrets(tmp_path, "--tls")
    names = {"CERTIFICATE": "redis_certificate", "KEY": "redis_key", "CA": "redis_ca"}
    files = {f"REDIS_TLS_{key}": str(given / name) for key, name in names.items()}
    with started(tmp_path, given, **files) as environ:
        port = environ["REDIS_PORT"]
        with pytest.raises(StreamError), translated():
            client_of("learner", given, port).ping()
        # The certificate is for the name `redis`, which only the container's network knows.
        encrypted = (f"redis.url=rediss://127.0.0.1:{port}?ssl_check_hostname=false", f"redis.tls_ca={given}/redis_ca")
        client = client_of("learner", given, port, *encrypted)
        assert client.ping()
        client.close()
        with pytest.raises(AccessError, match="is not trusted"):
            client_of("learner", given, port, f"redis.url=rediss://127.0.0.1:{port}", f"redis.tls_ca={given}/redis_ca")


def test_secrets_are_long_kept_when_asked_again_and_in_a_folder_of_their_owner_alone(tmp_path: Path) -> None:
    made = secrets(tmp_path)
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    before = {path.name: path.read_text() for path in made.iterdir()}
    assert len(before) == len(set(before.values())) == 7
    assert all(len(text) == 64 for text in before.values())
    assert {stat.S_IMODE(path.stat().st_mode) for path in made.iterdir()} == {0o444}
    (made / "read_token").unlink()
    again = {path.name: path.read_text() for path in secrets(tmp_path).iterdir()}
    assert again.pop("read_token") != before.pop("read_token")
    assert again == before
