"""What Redis refuses is told apart from what it cannot do now."""

from __future__ import annotations

import hashlib

import pytest

from shared import scripts
from shared.config import Config, load_config
from shared.config.load import dump_config
from shared.control import ControlState
from shared.errors import AccessError, ConfigError, StreamError
from shared.keys import Keys
from shared.redis_client import connect, server_version
from tests.conftest import RedisServer

SECRET = "open:sesame/1"


@pytest.fixture
def locked(own_redis: RedisServer) -> RedisServer:
    """A Redis whose default user has a password, and whose user `reader` may only ping."""
    client = connect(at(own_redis))
    client.execute_command("ACL", "SETUSER", "reader", "on", ">pw", "+ping", "+client")
    client.config_set("requirepass", SECRET)
    client.close()
    return own_redis


def at(server: RedisServer, *overrides: str) -> Config:
    return load_config(None, [f"redis.url={server.url}", *overrides], {})


@pytest.mark.parametrize(
    "overrides",
    [(), ("redis.password=wrong-secret",), ("redis.username=nobody", "redis.password=wrong-secret")],
    ids=["no password", "wrong password", "unknown user"],
)
def test_refused_credentials_are_a_configuration_error_at_once(locked: RedisServer, overrides: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"Redis refuses redis\.username and redis\.password") as caught:
        connect(at(locked, *overrides))
    assert "secret" not in str(caught.value)


def test_a_user_who_may_not_do_what_is_needed_is_a_configuration_error(locked: RedisServer) -> None:
    client = connect(at(locked, "redis.username=reader", "redis.password=pw"))
    with pytest.raises(AccessError, match=r"no permissions.*TRUSTBATCH__REDIS__PASSWORD"):
        server_version(client)
    client.close()


def test_a_password_that_is_changed_while_it_runs_is_no_outage(own_redis: RedisServer) -> None:
    client, other = connect(at(own_redis)), connect(at(own_redis))
    other.config_set("requirepass", SECRET)
    other.close()
    client.connection_pool.disconnect()
    with pytest.raises(AccessError):
        server_version(client)
    client.close()


def test_credentials_in_the_address_let_in_and_are_nowhere_shown(locked: RedisServer) -> None:
    address = locked.url.replace("://", "://default:open%3Asesame%2F1@")
    config = load_config(None, [f"redis.url={address}"], {})
    client = connect(config)
    assert server_version(client) >= (6, 2)
    client.close()
    assert config.redis.url == locked.url
    for shown in (dump_config(config), repr(config), str(config), config.model_dump_json()):
        assert "sesame" not in shown


def test_a_redis_that_is_away_is_met_by_the_first_command(own_redis: RedisServer) -> None:
    own_redis.kill()
    client = connect(at(own_redis))
    with pytest.raises(StreamError, match="cannot be reached") as caught:
        server_version(client)
    assert not isinstance(caught.value, ConfigError)
    client.close()


def test_no_address_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match=r"redis\.url is not set; set it, or use `trustbatch up`"):
        connect(load_config(None, [], {}))


def test_scripts_that_redis_has_forgotten_come_back_all_of_them_with_the_first_that_is_missed(
    own_redis: RedisServer,
) -> None:
    client = connect(at(own_redis))
    control = ControlState(client, Keys("run"))
    for _ in range(2):
        client.script_flush()
        control.beat("learner", {"kind": "learner"}, 30)
        digests = [hashlib.sha1(source.encode()).hexdigest() for source in scripts.ALL]
        assert len(digests) >= 10
        assert all(client.script_exists(*digests))
    client.close()
