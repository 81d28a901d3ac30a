"""Rows and the tiers that they are rolled up to, on a real Redis: nothing lost, nothing twice, bytes bounded."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from shared.control import ControlState
from shared.errors import FencedError
from shared.history import DEFAULT_BYTES, History
from shared.keys import Keys
from shared.redis_client import Client
from shared.series import SECONDS, SHARES, TIERS, Cells, Series, Tier, downsampled, flatten
from tests.conftest import RedisServer
from tests.services.rows import step

BEGAN = 1_700_000_000 // 86_400 * 86_400.0


@pytest.fixture
def history(client: Client, keys: Keys) -> History:
    return History(client, keys)


def tier(client: Client, keys: Keys, name: Tier, field: str = "reward_mean") -> Cells:
    series = Series(client, keys.series)
    return series.read(name, [field], series.blocks(name))[field]


def told(cells: Cells) -> list[tuple[int, ...]]:
    return [tuple(row) for row in np.stack([cells.number, cells.count, cells.mean, cells.low, cells.high]).T.tolist()]


def expected(rows: Iterable[Mapping[str, Any]], name: Tier) -> list[tuple[float, ...]]:
    """What a tier must hold of reward_mean, computed from the rows alone."""
    places: dict[int, list[float]] = {}
    for i, row in enumerate(rows):
        places.setdefault(i if name == "steps" else int(row["at"] // SECONDS[name]), []).append(row["reward_mean"])
    return [(place, len(v), sum(v) / len(v), min(v), max(v)) for place, v in sorted(places.items())]


def check(client: Client, keys: Keys, rows: list[dict[str, Any]]) -> None:
    for name in TIERS:
        np.testing.assert_allclose(told(tier(client, keys, name)), expected(rows, name), rtol=1e-6)


def rows_of(steps: Iterable[int], every_s: float, **changes: Any) -> list[dict[str, Any]]:
    return [step(n, at=BEGAN + n * every_s, reward_mean=(n * 37 % 11) / 8, **changes) for n in steps]


def test_every_tier_holds_every_row_once(client: Client, keys: Keys, history: History) -> None:
    rows = rows_of(range(1, 400), 17.3)
    for row in rows:
        history.add(row)
        history.add(row)  # whose first answer was lost
    check(client, keys, rows)
    assert history.rows(1000) == rows
    assert client.hget(keys.series, "row_bytes") == str(sum(map(len, map(_json, rows)))).encode()


def _json(row: dict[str, Any]) -> str:
    return json.dumps(row)


@pytest.mark.parametrize("back_to", [0, 1, 150, 199])
@pytest.mark.parametrize("every_s", [0.9, 400.0])
def test_what_a_restore_takes_back_and_does_again_counts_once(
    client: Client, keys: Keys, history: History, back_to: int, every_s: float
) -> None:
    control = ControlState(client, keys)
    before = rows_of(range(1, 200), every_s)
    first = control.take_epoch()
    for row in before:
        history.add(row, first)
    second = control.take_epoch()
    assert history.rewind(back_to, second) == 199 - back_to
    assert history.rewind(back_to, second) == 0, "again, after a crash in between"
    check(client, keys, before[:back_to])
    again = [{**row, "at": row["at"] + 200 * every_s, "reward_mean": 9.0} for row in before[back_to : back_to + 40]]
    for row in again:
        history.add(row, second)
    check(client, keys, before[:back_to] + again)
    with pytest.raises(FencedError):
        history.rewind(0, first)
    with pytest.raises(FencedError):
        history.add(before[0], first)
    check(client, keys, before[:back_to] + again)


def test_the_books_know_what_is_kept(client: Client, keys: Keys, history: History) -> None:
    for row in rows_of(range(1, 200), 30.0):
        history.add(row)
    history.rewind(111, ControlState(client, keys).take_epoch())
    books = client.hgetall(keys.series)
    for name in TIERS:
        held = 0
        for block in Series(client, keys.series).blocks(name):
            fields = client.hgetall(keys.block(keys.series, name, block))
            size = sum(len(value) + len(field) + 96 for field, value in fields.items())
            assert int(books[f"{name}:{block}".encode()]) == size
            held += size
        assert int(books[f"bytes:{name}".encode()]) == held


def test_bytes_stay_within_the_budget_and_the_oldest_go_first(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    client, keys, budget = redis.Redis.from_url(server.url), Keys("bounded"), 2 * 2**20
    history = History(client, keys, budget)
    wide = {f"{n}": {"token_ess": 0.5, "tokens": n, "kl": 0.1, "capped_share": 0.1} for n in range(10)}
    empty = client.info("memory")["used_memory"]
    for row in rows_of(range(1, 700), 1511.0, by_staleness=wide):
        history.add(row)
    books = client.hgetall(keys.series)
    assert int(books[b"row_bytes"]) <= budget * SHARES["rows"]
    for name in TIERS:
        assert int(books[f"bytes:{name}".encode()]) <= budget * SHARES[name], name
    series = Series(client, keys.series)
    assert [series.is_whole(name) for name in TIERS] == [False, False, False]
    assert tier(client, keys, "steps").number[-1] == 698, "the newest stay"
    assert tier(client, keys, "hours").number[-1] == (BEGAN + 699 * 1511) // 3600
    assert history.rows(1)[0]["step"] == 699
    assert client.info("memory")["used_memory"] - empty < budget, "what Redis takes for them, too"
    client.close()
    server.kill()


def test_a_clock_that_runs_ahead_does_not_age_what_is_kept(client: Client, keys: Keys, history: History) -> None:
    now = time.time()
    history.add(step(1, at=now))
    history.add(step(2, at=now + 10**9))
    history.add(step(3, at=now))
    assert sum(tier(client, keys, "minutes").count) == 3


def test_numbers_of_a_row_by_series() -> None:
    row = step(
        3,
        [1, 2],
        by_arm={"lag 0": {"kl": 0.5, "loss": math.nan}},
        lags={"0": 2},
        shadows=[{"objective": "grpo", "loss": 1.0}],
        log_ratio_abs_max=None,
        skipped="text",
    )
    found = flatten({**row, "log_ratio_counts": [1, 0, 2], "flag": True})
    assert found["step"] == 3
    assert {name: value for name, value in found.items() if "|" in name} == {
        "by_arm.kl|lag 0": 0.5,
        "lags|0": 2,
        "settings|max_staleness": 4,
        "settings|learning_rate_factor": 1,
        "shadows.loss|grpo": 1,
        "log_ratio_counts|0": 1,
        "log_ratio_counts|1": 0,
        "log_ratio_counts|2": 2,
    }
    assert not {"skipped", "prompt_indices", "flag", "log_ratio_abs_max"} & found.keys()


def test_stretches_are_taken_together_from_multiples_on() -> None:
    numbers, means = np.arange(5, 12), np.arange(5, 12).astype(np.float64)
    low, high = np.subtract(means, 0.5), np.add(means, 0.5)
    found = downsampled(Cells(numbers, np.ones(7), means, low, high), 4)
    assert told(found) == [(4, 3, 6, 4.5, 7.5), (8, 4, 9.5, 7.5, 11.5)]


def test_the_default_is_that_of_the_configuration(config: Any) -> None:
    assert config.control_plane.history_bytes == DEFAULT_BYTES
    assert math.isclose(sum(SHARES.values()), 1)
