"""The lag dial on a live run in lockstep: learner and rollout server as processes, weights that move at every step."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from services.lag import set_lag
from shared.codec import decode_group
from shared.config import Config
from shared.config.lag import LagSetting
from shared.config.load import dump_config
from shared.control import ControlState
from shared.keys import Keys
from shared.redis_client import Client
from shared.store import PolicyStore
from shared.types import Group
from tests.rollout.models import save_model
from tests.rollout.run import small
from tests.system.processes import processes, wait_for

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

PLATEAUS = [(0, 0), (3, 1), (6, 4), (13, 16), (34, 64), (70, 0), (74, None)]  # (from this step on, lag); None: the end


def drawn_groups(client: Client, keys: Keys) -> dict[int, Group]:
    """Every group of the run; the stream keeps them, since there is no checkpoint before the end."""
    entries = client.xrange(keys.groups)
    groups = [decode_group(fields[b"payload"]) for _, fields in entries]
    return {group.prompt_index: group for group in groups}


def test_in_lockstep_staleness_is_the_lag_exactly_while_the_dial_is_turned(
    config: Config, client: Client, keys: Keys, tmp_path: Path
) -> None:
    run = small(
        config,
        save_model(tmp_path / "model"),
        "admission.max_staleness=0",
        "rollout.max_lag=64",
        "rollout.sampling.max_tokens=2",
        "environment.path=tests.rollout.worlds:Shade",
        "evaluation.prompts=1",
        "evaluation.every=1000",
        "learner.groups_per_batch=2",
        "learner.learning_rate=1e-3",
        "learner.checkpoint_every=100000",
        "learner.steps=100000",
        "learner.record_bytes=0",
    )
    file, log = tmp_path / "config.yaml", tmp_path / "log"
    file.write_text(dump_config(run))
    control = ControlState(client, keys)
    rows: list[dict[str, Any]] = []
    commands = [["-m", "learner", "--config", str(file)], ["-m", "rollout", "--config", str(file), "--server-id", "r0"]]
    with processes(*commands, log=log) as running:

        def reached(step: int) -> bool:
            rows[:] = control.history()
            return control.latest() is not None and (step == 0 or bool(rows and rows[-1]["step"] >= step))

        for step, lag in PLATEAUS:
            wait_for(partial(reached, step), f"step {step}", running, log)
            if lag is not None:
                set_lag(run, control, LagSetting(lag=lag), "a test")
        groups, store = drawn_groups(client, keys), PolicyStore(run.run.folder / "policy")
        manifests = {version: store.manifest(version) for version in store.versions()[-60:]}

    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert not any(row["skipped"] for row in rows)
    exact: dict[int, set[int]] = {}
    for row in rows:
        newest = row["step"] - 1
        assert row["policy_version"] == newest, "lockstep: a version a step"
        mine = [groups[index] for index in row["prompt_indices"]]
        assert len(mine) == 2
        for group in mine:
            expected = max(0, newest - group.lag)  # the first steps have the starting model, whatever the lag
            assert {s.policy_version for t in group.trajectories for s in t.versions} == {expected}, row["step"]
        assert row["staleness_max"] == max(min(group.lag, newest) for group in mine)
        assert sum(row["lags"].values()) == 2
        if row["staleness_mean"] == row["staleness_max"] and len(row["lags"]) == 1:
            exact.setdefault(int(next(iter(row["lags"]))), set()).add(row["staleness_max"])
    assert exact.keys() == {0, 1, 4, 16, 64}
    assert all(lag in found and max(found) == lag for lag, found in exact.items()), exact
    assert len({tuple(map(tuple, m.probe.logprobs)) for m in manifests.values()}) == len(manifests) >= 60
    assert len({str(m.files) for m in manifests.values()}) == len(manifests), "every version has weights of its own"
