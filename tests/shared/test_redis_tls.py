"""Redis over TLS: the right authority lets in, anything else is refused at once and named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.config import Config, load_config
from shared.errors import AccessError, ConfigError, StreamError
from shared.redis_client import connect, server_version
from tests.certificates import Authority, authority
from tests.redis7 import Redis7

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return authority(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="module")
def server(ours: Authority) -> Iterator[Redis7]:
    """Asks clients for a certificate too."""
    certificate, key = ours.sign("redis")
    client_certificate, client_key = ours.sign("client")
    files = ("--tls-cert-file", certificate, "--tls-key-file", key, "--tls-ca-cert-file", ours.certificate)
    trust = {"ssl": True, "ssl_ca_certs": ours.certificate}
    shown = {"ssl_certfile": client_certificate, "ssl_keyfile": client_key}
    options = ("--port", "0", "--tls-port", "PORT", "--tls-auth-clients", "yes", *map(str, files))
    server = Redis7(ours.folder, *options, **trust, **shown)
    yield server
    server.kill()


def config(server: Redis7, ours: Authority, *overrides: str) -> Config:
    certificate, key = ours.folder / "client.pem", ours.folder / "client.key"
    given = [f"redis.url=rediss://127.0.0.1:{server.port}", f"redis.tls_ca={ours.certificate}"]
    return load_config(None, [*given, f"redis.tls_certificate={certificate}", f"redis.tls_key={key}", *overrides], {})


def test_the_right_authority_and_certificate_let_in(server: Redis7, ours: Authority) -> None:
    client = connect(config(server, ours))
    assert server_version(client) >= (7, 0)
    client.close()


def test_a_server_that_somebody_else_signed_for_is_refused_at_once(
    server: Redis7, ours: Authority, tmp_path: Path
) -> None:
    theirs = authority(tmp_path / "theirs")
    with pytest.raises(
        AccessError, match=r"certificate of Redis is not trusted.*redis\.tls_ca names who must have signed"
    ):
        connect(config(server, ours, f"redis.tls_ca={theirs.certificate}"))


def test_the_authorities_of_the_system_do_not_know_it(server: Redis7, ours: Authority) -> None:
    with pytest.raises(AccessError, match="not trusted"):
        connect(config(server, ours, "redis.tls_ca="))


def test_a_certificate_for_another_host_is_refused(ours: Authority) -> None:
    certificate, key = ours.sign("elsewhere", host="redis.example")
    options = ("--port", "0", "--tls-port", "PORT", "--tls-auth-clients", "no", "--tls-cert-file", str(certificate))
    trust = {"ssl": True, "ssl_ca_certs": ours.certificate, "ssl_check_hostname": False}
    server = Redis7(
        ours.folder, *options, "--tls-key-file", str(key), "--tls-ca-cert-file", str(ours.certificate), **trust
    )
    try:
        with pytest.raises(AccessError, match=r"the host in redis\.url must be one that it is for"):
            connect(config(server, ours))
    finally:
        server.kill()


def test_without_a_certificate_of_ones_own_the_server_does_not_answer(server: Redis7, ours: Authority) -> None:
    given = [f"redis.url=rediss://127.0.0.1:{server.port}", f"redis.tls_ca={ours.certificate}"]
    client = connect(load_config(None, given, {}))
    with pytest.raises(StreamError):
        server_version(client)
    client.close()


def test_without_tls_the_server_does_not_answer(server: Redis7) -> None:
    client = connect(load_config(None, [f"redis.url=redis://127.0.0.1:{server.port}"], {}), timeout_s=2)
    with pytest.raises(StreamError):
        server_version(client)
    client.close()


@pytest.mark.parametrize("name", ["tls_ca", "tls_certificate", "tls_key"])
def test_a_file_that_cannot_be_used_is_a_plain_refusal(
    server: Redis7, ours: Authority, tmp_path: Path, name: str
) -> None:
    for wrong in (tmp_path / "none", tmp_path / "text", tmp_path):
        (tmp_path / "text").write_text("no certificate\n")
        with pytest.raises(ConfigError, match=rf"redis\.{name} {wrong}.*cannot be used"):
            connect(config(server, ours, f"redis.{name}={wrong}"))


def test_tls_files_without_tls_are_refused_at_load() -> None:
    with pytest.raises(ConfigError, match="begins with rediss://"):
        load_config(None, ["redis.url=redis://h", "redis.tls_ca=x"], {})
    with pytest.raises(ConfigError, match="belong together"):
        load_config(None, ["redis.url=rediss://h", "redis.tls_certificate=x"], {})
