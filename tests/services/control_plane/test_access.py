"""Who gets in: every route with every role, and what somebody without a token learns."""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from services.control_plane import access
from services.control_plane.access import Role, Tokens, tokens_of
from services.control_plane.app import create_app
from services.control_plane.page import PATHS
from shared.config import Config, load_config
from shared.control import ControlState, Latest
from shared.errors import ConfigError
from shared.keys import Keys
from shared.redis_client import Client
from shared.wishes import Wishes
from tests.conftest import RedisServer

READ, OPERATE = "only-for-looking-0123", "for-operators-0123456"
NOBODY, WRONG, READER, OPERATOR = "", "Bearer wrong-token-000000", f"Bearer {READ}", f"Bearer {OPERATE}"


def guarded(config: Config, *overrides: str) -> Config:
    given = [f"redis.url={config.redis.url}", f"run.id={config.run.id}", f"control_plane.read_token={READ}"]
    return load_config(None, [*given, f"control_plane.operate_token={OPERATE}", *overrides], {})


@pytest.fixture
def http(config: Config) -> Iterator[TestClient]:
    with TestClient(create_app(guarded(config)), raise_server_exceptions=False) as client:
        yield client


def ask(http: TestClient, method: str, path: str, authorization: str) -> int:
    headers = {"authorization": authorization} if authorization else {}
    body: Any = (0 if path == "/v1/lag" else {}) if method == "PUT" else None
    asked = path.replace("{letter_id}", "1-1").replace("{step}", "1") + NEEDED.get(path, "")
    return http.request(method, asked, headers=headers, json=body).status_code


NEEDED = {"/v1/series": "?name=step", "/v1/histograms": "?name=staleness"}
STREAMS = {("GET", "/v1/live")}  # which a client of tests would wait for until it ends


WHO_MAY = [
    ("GET", "/", 200, 200, 200),
    *(("GET", path, 200, 200, 200) for path in PATHS if path != "/"),
    ("GET", "/healthz", 200, 200, 200),
    ("GET", "/readyz", 200, 200, 200),
    ("GET", "/metrics", 401, 200, 200),
    ("GET", "/openapi.json", 401, 200, 200),
    ("GET", "/v1/status", 401, 200, 200),
    ("GET", "/v1/history", 401, 200, 200),
    ("GET", "/v1/metrics", 401, 200, 200),
    ("GET", "/v1/series", 401, 200, 200),
    ("GET", "/v1/histograms", 401, 200, 200),
    ("GET", "/v1/servers", 401, 200, 200),
    ("GET", "/v1/servers/{server_id}", 401, 200, 200),
    ("GET", "/v1/events", 401, 200, 200),
    ("GET", "/v1/lag", 401, 200, 200),
    ("PUT", "/v1/lag", 401, 403, 200),
    ("DELETE", "/v1/lag", 401, 403, 200),
    ("GET", "/v1/runs", 401, 200, 200),
    ("GET", "/v1/groups", 401, 200, 200),
    ("GET", "/v1/groups/{step}/{group_id}", 401, 200, 200),
    ("GET", "/v1/admission", 401, 200, 200),
    ("PUT", "/v1/admission", 401, 403, 200),
    ("DELETE", "/v1/admission", 401, 403, 200),
    ("GET", "/v1/objective", 401, 200, 200),
    ("PUT", "/v1/objective", 401, 403, 200),
    ("DELETE", "/v1/objective", 401, 403, 200),
    ("GET", "/v1/dead-letters", 401, 200, 200),
    ("GET", "/v1/dead-letters/{letter_id}", 401, 200, 200),
    ("POST", "/v1/dead-letters/{letter_id}/requeue", 401, 403, 202),
    ("POST", "/v1/servers/{server_id}/drain", 401, 403, 200),
    ("POST", "/v1/servers/{server_id}/undrain", 401, 403, 200),
    ("DELETE", "/v1/servers/{server_id}", 401, 403, 200),
    ("POST", "/v1/pause", 401, 403, 200),
    ("POST", "/v1/resume", 401, 403, 200),
    ("GET", "/v1/nothing", 401, 404, 404),
    ("DELETE", "/v1/status", 401, 403, 405),
    ("POST", "/healthz", 401, 403, 405),
    ("GET", "/v1/status/", 401, 404, 404),
    ("GET", "//v1/status", 401, 404, 404),
]


def furnish(client: Client, keys: Keys) -> None:
    """The run as it was: with what the routes are about, and nothing that an earlier request wanted."""
    client.delete("none", *client.scan_iter(f"trustbatch:{{{keys.run_id}}}:*"))
    control = ControlState(client, keys)
    epoch = control.take_epoch()
    control.announce(epoch, Latest(0, -1, 0), 0, [])
    control.beat("rollout:{server_id}", {"kind": "rollout", "draining": True}, 30)
    Wishes(client, keys).drain("{server_id}", "operator", True)
    taken = {"name": "p3o", "learning_rate_factor": 1.0, "knobs": [], "since_step": 0, "refused": ""}
    control.beat("learner", {"kind": "learner", "objective": taken}, 30)
    control.add_examples(1, [{"group_id": "{group_id}"}], epoch, 1000)
    client.xadd(keys.dead_letters, {"reason": "undecodable"}, "1-1")


def test_every_route_asks_for_its_role(config: Config, client: Client, keys: Keys) -> None:
    patient, found = guarded(config, "control_plane.requests_per_minute=6000"), {}
    with TestClient(create_app(patient), raise_server_exceptions=False, follow_redirects=False) as http:
        for method, path, *_ in WHO_MAY:
            furnish(client, keys)
            found[method, path] = tuple(ask(http, method, path, who) for who in (NOBODY, WRONG, READER, OPERATOR))
    assert found == {(m, path): (nobody, nobody, reader, may) for m, path, nobody, reader, may in WHO_MAY}


def test_no_route_is_left_out_of_the_table(config: Config) -> None:
    app = create_app(guarded(config))
    routes = {(m, r.path) for r in app.routes for m in r.methods if m != "HEAD"}  # type: ignore[attr-defined]
    assert routes == STREAMS | {(method, path) for method, path, *_, operator in WHO_MAY if operator < 300}


@pytest.mark.parametrize(
    "header",
    [
        "Bearer",
        "Bearer ",
        OPERATE,
        f"Basic {OPERATE}",
        f"Bearer {OPERATE}x",
        f"Bearer {OPERATE[:-1]}",
        "Bearer \xe4\xf6",
    ],
)
def test_what_is_not_exactly_a_token_is_refused(http: TestClient, header: str) -> None:
    answer = http.get("/v1/status", headers={b"authorization": header.encode("latin-1")})
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["www-authenticate"] == 'Bearer realm="trustbatch", error="invalid_token"'


def test_refusals_say_what_is_needed_and_no_token_in_an_address_lets_in(http: TestClient) -> None:
    answer = http.get("/v1/status")
    assert answer.headers["www-authenticate"] == 'Bearer realm="trustbatch"'
    assert "Authorization: Bearer <token>" in answer.json()["detail"]
    assert http.get(f"/v1/status?token={OPERATE}&access_token={OPERATE}").status_code == 401
    assert http.get("/v1/status", cookies={"token": OPERATE}).status_code == 401
    wrong_role = http.post("/v1/pause", headers={"authorization": READER})
    assert wrong_role.headers["www-authenticate"].endswith('error="insufficient_scope"')
    assert "needs the token that may operate" in wrong_role.json()["detail"]


def test_a_reader_cannot_pause_and_an_operator_can(http: TestClient, client: Client, keys: Keys) -> None:
    control = ControlState(client, keys)
    ask(http, "POST", "/v1/pause", READER)
    assert not control.paused()
    ask(http, "POST", "/v1/pause", OPERATOR)
    assert control.paused()


def test_comparison_is_of_constant_time_and_looks_at_both_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []
    real = hmac.compare_digest

    def spy(shown: bytes, held: bytes) -> bool:
        compared.append(held)
        return real(shown, held)

    monkeypatch.setattr(hmac, "compare_digest", spy)
    tokens = Tokens(READ.encode(), OPERATE.encode())
    for header, role in ((READER, Role.READ), (OPERATOR, Role.OPERATE), (WRONG, Role.STRANGER), ("", Role.STRANGER)):
        compared.clear()
        assert tokens.role(header) == role
        assert sorted(compared) == sorted([READ.encode(), OPERATE.encode()])


@pytest.mark.parametrize("held", [Tokens(None, OPERATE.encode()), Tokens(READ.encode(), None)])
def test_a_token_that_nobody_holds_lets_nobody_in(held: Tokens) -> None:
    assert held.role("Bearer ") == held.role("") == held.role("Bearer None") == Role.STRANGER


def test_a_stranger_at_the_readiness_probe_learns_no_address(own_redis: RedisServer, config: Config) -> None:
    with TestClient(create_app(guarded(config, f"redis.url={own_redis.url}"))) as http:
        own_redis.kill()
        refused = http.get("/readyz")
        assert (refused.status_code, refused.json()["detail"]) == (503, "Redis does not answer as it should")
        assert str(own_redis.port) in http.get("/readyz", headers={"authorization": READER}).json()["detail"]


# -- without tokens -------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "10.0.0.1", "example.org", "", "localhost.example.org", "127.0.0.1.nip.io"]
)
def test_no_authentication_is_refused_on_a_host_that_others_reach(host: str) -> None:
    with pytest.raises(ConfigError, match=r"control_plane\.auth is none, so control_plane\.host must be"):
        load_config(None, ["control_plane.auth=none", f"control_plane.host='{host}'"], {})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_no_authentication_is_possible_on_loopback(host: str) -> None:
    config = load_config(None, ["control_plane.auth=none", f"control_plane.host='{host}'"], {})
    assert tokens_of(config) is None


def test_without_auth_none_a_control_plane_without_a_token_does_not_start() -> None:
    with pytest.raises(ConfigError, match=r"set TRUSTBATCH__CONTROL_PLANE__OPERATE_TOKEN"):
        create_app(load_config(None, [], {}))


def test_a_name_that_somebody_else_points_at_this_machine_is_not_answered(config: Config) -> None:
    with TestClient(create_app(config)) as http:
        for host, code in (
            ("evil.example", 403),
            ("evil.example:8400", 403),
            ("127.0.0.1.evil.example", 403),
            ("evil@evil.example", 403),
            ("127.0.0.1:9", 200),
            ("localhost", 200),
            ("[::1]:9", 200),
        ):
            assert http.get("/v1/status", headers={"host": host}).status_code == code, host
        assert http.get("/healthz", headers={"host": "pod.internal"}).status_code == 200


# -- configuration --------------------------------------------------------------------------------
def test_tokens_may_come_from_files_and_from_the_environment(tmp_path: Path) -> None:
    (tmp_path / "read").write_text(READ + "\n")
    environ = {
        "TRUSTBATCH__CONTROL_PLANE__READ_TOKEN_FILE": str(tmp_path / "read"),
        "TRUSTBATCH__CONTROL_PLANE__OPERATE_TOKEN": "12345678901234567890",  # not a number
    }
    tokens = tokens_of(load_config(None, [], environ))
    assert tokens is not None
    assert tokens.role(f"Bearer {READ}") == Role.READ
    assert tokens.role("Bearer 12345678901234567890") == Role.OPERATE


BAD = [
    (["control_plane.operate_token=short-sesame"], "at least 16 characters"),
    (["control_plane.operate_token='sesame with spaces in it'"], "without spaces"),
    (["control_plane.operate_token=12345678901234567890"], "control_plane.operate_token: .* put quotes around it"),
    (["control_plane.operate_token=[sesame-sesame-sesame]"], "control_plane.operate_token"),
    ([f"control_plane.operate_token={OPERATE}", "control_plane.operate_token_file=x"], "give only one of them"),
    ([f"control_plane.operate_token={OPERATE}", "control_plane.auth=none"], "leave one of them away"),
    (["control_plane.tls_certificate=x"], "belong together"),
    ([f"control_plane.operate_token={OPERATE}", "control_plane.colour=blue"], "unknown key"),
]


@pytest.mark.parametrize(("overrides", "message"), BAD)
def test_what_cannot_be_is_refused_at_load_and_shows_no_secret(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(None, overrides, {})
    assert OPERATE not in str(caught.value)
    assert "sesame" not in str(caught.value)
    assert "12345678901234567890" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"short\n", b"two\nlines-of-a-token-file\n", b"\xff" * 30, b"x" * 5000, b"a b" * 9]
)
def test_a_bad_token_file_is_a_plain_refusal(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="operate_token_file"):
        tokens_of(load_config(None, [f"control_plane.operate_token_file={path}"], {}))
    path.unlink()
    with pytest.raises(ConfigError, match="No such file"):
        tokens_of(load_config(None, [f"control_plane.operate_token_file={path}"], {}))


def test_two_roles_with_one_token_are_refused() -> None:
    same = [f"control_plane.read_token={READ}", f"control_plane.operate_token={READ}"]
    with pytest.raises(ConfigError, match="are the same"):
        tokens_of(load_config(None, same, {}))


def test_files_that_are_no_certificate_are_a_plain_refusal(tmp_path: Path) -> None:
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    config = load_config(None, [f"control_plane.tls_certificate={certificate}", f"control_plane.tls_key={key}"], {})
    with pytest.raises(ConfigError, match=r"c\.pem.*cannot be used: No such file"):
        access.tls_settings(config)
    certificate.write_text("no certificate")
    key.write_text("no key")
    with pytest.raises(ConfigError, match=r"tls_certificate .*c\.pem.*cannot be used"):
        access.tls_settings(config)
    assert access.tls_settings(load_config(None, [], {})) == {}
