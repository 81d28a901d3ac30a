"""schemathesis against the API's own description: whatever it says may be sent is answered, and never with 500."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st
from schemathesis.generation import GenerationMode
from starlette.testclient import TestClient

from services.control_plane.app import create_app
from shared.config import Config
from shared.control import ControlState
from shared.keys import Keys
from shared.redis_client import Client
from tests.services.control_plane.test_app import ROUTES, fill

pytestmark = pytest.mark.system

TOKEN = "for-operators-0123456"
EXAMPLES = 25
SENT = ("method", "url", "params", "headers", "json", "content")


@pytest.fixture
def guarded(config: Config, client: Client, keys: Keys) -> Config:
    fill(ControlState(client, keys), client, keys)
    plane = config.control_plane.model_validate(
        {"auth": "token", "operate_token": TOKEN, "requests_per_minute": 1_000_000}
    )
    return config.model_copy(update={"control_plane": plane})


@pytest.fixture
def http(guarded: Config) -> Iterator[TestClient]:
    with TestClient(create_app(guarded), raise_server_exceptions=False) as client:
        yield client


ANSWERED = {path: method for path, method in ROUTES.items() if path != "/v1/live"}  # which only a stop ends
CHANGED = ("/v1/lag", "/v1/admission", "/v1/objective")
CHANGES = [(path, method) for path in CHANGED for method in ("put", "delete")]
OPERATIONS = [*ANSWERED.items(), *CHANGES, ("/v1/servers/{server_id}", "delete")]
DESCRIBED = [(*operation, GenerationMode.POSITIVE) for operation in OPERATIONS]
OTHERWISE = [
    (*operation, GenerationMode.NEGATIVE) for operation in OPERATIONS if operation[0][-1] != "z"
]  # no parameters


@pytest.mark.parametrize(("path", "method", "mode"), DESCRIBED + OTHERWISE)
def test_what_is_described_is_what_is_answered(
    http: TestClient, guarded: Config, path: str, method: str, mode: GenerationMode
) -> None:
    description = http.get("/openapi.json", headers={"Authorization": f"Bearer {TOKEN}"}).json()
    schema = schemathesis.openapi.from_dict(description)
    operation = schema[path][method.upper()]
    asked = 0

    @seed(1)
    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def look(case: Any) -> None:
        nonlocal asked
        asked += 1
        sent = {k: v for k, v in case.as_transport_kwargs(base_url="http://127.0.0.1").items() if k in SENT}
        sent["headers"] = dict(sent.get("headers") or {}) | {"Authorization": f"Bearer {TOKEN}"}
        answer = http.request(**sent)
        described = description["paths"].get(path, {}).get(case.method.lower(), {}).get("responses", {})
        assert answer.status_code < 500, answer.text
        assert str(answer.status_code) in described or answer.status_code in (404, 405), answer.status_code

    look()
    assert asked >= 1


@settings(max_examples=300, deadline=None, database=None, phases=[Phase.generate], verbosity=Verbosity.quiet,
          suppress_health_check=list(HealthCheck))  # fmt: skip
@seed(1)
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "BREW"]),
    path=st.sampled_from([*ANSWERED, "/", "/openapi.json", "/v1", "/v1/%00", "/%2e%2e/etc", "//", "/v1/status;x=1"]),
    query=st.dictionaries(st.text(max_size=8), st.text(max_size=12), max_size=3),
    headers=st.dictionaries(
        st.sampled_from(
            ["origin", "host", "content-type", "accept", "range", "authorization", "x-forwarded-for", "cookie"]
        ),
        st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=40),
        max_size=4,
    ),
    body=st.binary(max_size=200),
)
def test_whatever_is_sent_is_answered_below_500(
    http: TestClient, method: str, path: str, query: dict[str, str], headers: dict[str, str], body: bytes
) -> None:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    if "authorization" not in headers:
        raw.append((b"authorization", f"Bearer {TOKEN}".encode()))
    answer = http.request(method, path, params=query, headers=raw, content=body)
    assert answer.status_code < 500, answer.text
    if method != "HEAD" and answer.headers.get("content-type") == "application/problem+json":
        assert json.loads(answer.text)["status"] == answer.status_code
