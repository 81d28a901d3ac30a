"""The load generator as a process on a real Redis, with nobody but a hand that publishes a version."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.config import Config, load_config
from shared.config.load import dump_config
from shared.control import ControlState, Latest
from shared.intervals import Intervals
from shared.keys import Keys
from shared.redis_client import Client
from shared.stream import GroupReader, backlog

ROOT = Path(__file__).parents[3]
Load = Callable[..., "subprocess.Popen[bytes]"]

pytestmark = pytest.mark.system


@pytest.fixture
def load(config: Config, tmp_path: Path) -> Iterator[Load]:
    """load("--count", "10"): a generator for a run with credit for 64 groups, its log in appends.jsonl."""
    given = [f"redis.url={config.redis.url}", f"run.id={config.run.id}", f"run.folder={config.run.folder}"]
    given += ["rollout.group_size=2", "learner.groups_per_batch=32", "admission.max_staleness=1"]
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(load_config(None, given, {})))
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        words = ["services.cli", "load", "--config", str(file), "--log", str(tmp_path / "appends.jsonl"), *arguments]
        started.append(subprocess.Popen([sys.executable, "-m", *words], cwd=ROOT))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def reader(client: Client, keys: Keys) -> GroupReader:
    """Of a learner that has published version 0."""
    control = ControlState(client, keys)
    epoch = control.take_epoch()
    found = GroupReader(client, keys, epoch)
    found.open(Intervals())
    control.announce(epoch, Latest(0, -1, 0), 0, [])
    return found


def appends(folder: Path) -> list[dict[str, Any]]:
    file = folder / "appends.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def in_stream(client: Client, keys: Keys) -> list[int]:
    return sorted(int(fields[b"prompt_index"]) for _, fields in client.xrange(keys.groups))


def test_a_count_is_kept_to_the_group_by_several_servers(
    load: Load, client: Client, keys: Keys, reader: GroupReader, tmp_path: Path
) -> None:
    assert load("--count", "50", "--servers", "3").wait(30) == 0
    rows = appends(tmp_path)
    assert sorted(row["index"] for row in rows) == in_stream(client, keys) == list(range(50))
    assert {row["result"] for row in rows} == {"stored"}
    assert len({row["server"] for row in rows}) > 1
    assert backlog(client, keys).leased == 0
    assert ControlState(client, keys).members() == {}


def test_without_credit_it_waits_and_says_so_and_stops_in_order(
    load: Load, client: Client, keys: Keys, reader: GroupReader, tmp_path: Path
) -> None:
    process = load()
    control, ends = ControlState(client, keys), time.monotonic() + 60
    while "waiting for staleness credit" not in [m["state"] for m in control.members().values() if m]:
        assert time.monotonic() < ends, control.members()
        time.sleep(0.05)
    assert len(appends(tmp_path)) == backlog(client, keys).unapplied == 64
    process.send_signal(signal.SIGTERM)
    assert process.wait(5) == 0
    assert backlog(client, keys).leased == 0


def test_the_rate_is_what_was_asked_for(load: Load, reader: GroupReader, tmp_path: Path) -> None:
    assert load("--count", "40", "--rate", "20", "--servers", "2").wait(30) == 0
    times = [row["at"] for row in appends(tmp_path)]
    assert 1.5 < max(times) - min(times) < 6


def test_more_than_admission_reckons_with_is_refused(load: Load, reader: GroupReader) -> None:
    assert load("--tokens", "100000").wait(20) == 2
