"""How much and how often: limits that hold for every client and starve nobody else."""

from __future__ import annotations

from starlette.testclient import TestClient

from services.control_plane.app import create_app
from services.control_plane.guard import MAX_BODY_BYTES, MAX_CLIENTS, Buckets, _network
from shared.config import Config, load_config


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_tenth_of_a_minute_at_once_then_the_rate_and_no_more() -> None:
    clock = Clock()
    buckets = Buckets(600, clock)
    assert [buckets.take("a") for _ in range(60)] == [0.0] * 60
    assert buckets.take("a") > 0
    allowed = 0
    for _ in range(1000):  # ten seconds, asking far too often
        clock.now += 0.01
        allowed += buckets.take("a") == 0
    assert 99 <= allowed <= 101, "10 a second"
    assert buckets.take("b") == 0, "others are not touched"


def test_the_wait_that_is_said_is_enough() -> None:
    clock = Clock()
    buckets = Buckets(10, clock)
    assert buckets.take("a") == 0
    seconds = buckets.take("a")
    clock.now = seconds * 0.99
    assert buckets.take("a") > 0
    clock.now = seconds * 1.01
    assert buckets.take("a") == 0


def test_a_million_addresses_take_no_more_memory_than_a_few_thousand() -> None:
    buckets = Buckets(600, Clock())
    for number in range(3 * MAX_CLIENTS):
        buckets.take(str(number))
    assert len(buckets._left) == MAX_CLIENTS


def test_a_host_with_many_addresses_is_one_client() -> None:
    assert _network("2001:db8::1") == _network("2001:db8::ffff:1") != _network("2001:db8:0:1::1")
    assert _network("10.0.0.1") != _network("10.0.0.2")
    assert len(_network("x" * 1000)) == 64


def test_too_many_requests_are_429_with_the_wait_and_probes_go_on(config: Config) -> None:
    slow = load_config(
        None,
        [f"redis.url={config.redis.url}", "control_plane.auth=none", "control_plane.requests_per_minute=30"],
        {},
    )
    with TestClient(create_app(slow), base_url="http://127.0.0.1") as http:
        codes = [http.get("/v1/history?last=1").status_code for _ in range(8)]
        assert codes == [200] * 3 + [429] * 5
        refused = http.get("/v1/status")
        assert refused.headers["content-type"] == "application/problem+json"
        assert int(refused.headers["retry-after"]) in (1, 2)
        assert http.get("/metrics").status_code == 429
        assert [http.get("/healthz").status_code for _ in range(20)] == [200] * 20
        assert [http.get("/readyz").status_code for _ in range(5)] == [200] * 3 + [429] * 2, "no lever on Redis either"


def test_guessing_tokens_meets_the_same_limit(config: Config) -> None:
    given = [f"redis.url={config.redis.url}", "control_plane.operate_token=0123456789abcdef"]
    with TestClient(create_app(load_config(None, [*given, "control_plane.requests_per_minute=50"], {}))) as http:
        codes = [http.get("/v1/status", headers={"authorization": f"Bearer {n:016}"}).status_code for n in range(20)]
    assert codes == [401] * 5 + [429] * 15


def test_a_body_beyond_the_limit_is_413_and_nonsense_lengths_too(config: Config) -> None:
    with TestClient(create_app(config), base_url="http://127.0.0.1") as http:
        assert http.post("/v1/pause", content=b"x" * MAX_BODY_BYTES).status_code == 422
        for length in (str(MAX_BODY_BYTES + 1), "9" * 30, "-1", "1e9", "\u0663"):
            headers = {b"content-length": length.encode()}
            answer = http.request("POST", "/v1/pause", headers=headers)
            assert answer.status_code == 413, length
            assert answer.headers["connection"] == "close"


def test_methods_that_nobody_knows_are_one_label(config: Config) -> None:
    with TestClient(create_app(config), base_url="http://127.0.0.1") as http:
        for number in range(5):
            http.request(f"BREW{number}", "/v1/status")
        text = http.get("/metrics").text
    assert "BREW" not in text
    assert 'method="other"' in text
