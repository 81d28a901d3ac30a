"""The lag dial on a live run in lockstep: learner and rollout server as processes, weights that move at every step."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
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
from tests.rollout.models import load_model, logprobs_of, save_model
from tests.rollout.run import small
from tests.system.processes import processes, wait_for

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

PLATEAUS: list[tuple[int, int | None]] = [
    (0, 0),
    (3, 1),
    (6, 4),
    (13, 16),
    (34, 64),
    (70, 0),
    (74, None),
]  # (from this step on, lag); None: the end


def drawn_groups(client: Client, keys: Keys) -> dict[int, Group]:
    """Every group of the run; the stream keeps them, since there is no checkpoint before the end."""
    entries = client.xrange(keys.groups)
    groups = [decode_group(fields[b"payload"]) for _, fields in entries]
    return {group.prompt_index: group for group in groups}


def lockstep(config: Config, model: Path, *overrides: str) -> Config:
    """A run whose every step draws two groups, trains on them and moves the weights."""
    return small(
        config,
        model,
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
        *overrides,
    )


def drive(
    run: Config, client: Client, plateaus: list[tuple[int, int | None]], file: Path
) -> tuple[list[dict[str, Any]], dict[int, Group]]:
    """Lets a learner and a server work, the dial being turned at each plateau; returns history and groups."""
    log = file.with_suffix(".log")
    file.write_text(dump_config(run))
    keys = Keys(run.run.id)
    control = ControlState(client, keys)
    rows: list[dict[str, Any]] = []
    commands = [["-m", "learner", "--config", str(file)], ["-m", "rollout", "--config", str(file), "--server-id", "r0"]]
    with processes(*commands, log=log) as running:

        def reached(step: int, lag: int) -> bool:
            rows[:] = control.history()
            if step == 0:
                return control.latest() is not None
            last = rows[-1] if rows else {"step": 0}
            return last["step"] >= step and last["lags"] == {str(lag): 2} and last["staleness_max"] == lag

        asked = run.rollout.lag.largest
        for step, lag in plateaus:
            wait_for(partial(reached, step, asked), f"step {step} at lag {asked}", running, log)
            if lag is not None:
                set_lag(run, control, LagSetting(lag=lag), "a test")
                asked = lag
        return rows, drawn_groups(client, keys)


def exact_staleness(rows: list[dict[str, Any]], groups: dict[int, Group]) -> dict[int, set[int]]:
    """Looks at each group of each step. Returns lag -> the staleness of the steps that had this lag alone."""
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
    assert all(lag in found and max(found) == lag for lag, found in exact.items()), exact
    return exact


def test_in_lockstep_staleness_is_the_lag_exactly_while_the_dial_is_turned(
    config: Config, client: Client, tmp_path: Path
) -> None:
    run = lockstep(config, save_model(tmp_path / "model"))
    rows, groups = drive(run, client, PLATEAUS, tmp_path / "config.yaml")
    assert exact_staleness(rows, groups).keys() == {0, 1, 4, 16, 64}
    store = PolicyStore(run.run.folder / "policy")
    manifests = {version: store.manifest(version) for version in store.versions()[-60:]}
    assert len({tuple(map(tuple, m.probe.logprobs)) for m in manifests.values()}) == len(manifests) >= 60
    assert len({str(m.files) for m in manifests.values()}) == len(manifests), "every version has weights of its own"


@pytest.mark.vllm
def test_vllm_serves_exactly_the_version_that_the_lag_asks_for(config: Config, client: Client, tmp_path: Path) -> None:
    """And its log-probs are those of that version's weights: it is no label."""
    vllm = "rollout.engine={kind: vllm, device: cpu, max_model_len: 64, kv_cache_gib: 0.1}"
    run = lockstep(config, save_model(tmp_path / "model"), vllm, "rollout.lag=2")
    plateaus: list[tuple[int, int | None]] = [(5, 0), (6, 2), (8, None)]
    rows, groups = drive(run, client, plateaus, tmp_path / "config.yaml")
    assert exact_staleness(rows, groups).keys() == {0, 2}
    store = PolicyStore(run.run.folder / "policy")
    trained = [groups[index] for row in rows for index in row["prompt_indices"]]
    for version, drawn in itertools.groupby(trained, lambda group: group.trajectories[0].versions[0].policy_version):
        model = load_model(store.folder(version))
        for group in drawn:
            prompt = group.prompt_ids.tolist()
            for t in group.trajectories:
                expected = logprobs_of(model, [*prompt, *t.token_ids.tolist()])[len(prompt) - 1 :]
                np.testing.assert_allclose(t.behavior_logprobs, expected, atol=1e-3)
