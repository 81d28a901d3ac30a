"""Where staleness comes from in a free-running service: a learner and two rollout servers as processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from shared.codec import decode_group
from shared.config import Config, load_config
from shared.config.load import dump_config
from shared.control import ControlState
from shared.keys import Keys
from shared.redis_client import Client
from tests.rollout.models import save_model
from tests.rollout.run import small
from tests.system.conftest import wait_for
from tests.system.processes import processes

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

STEPS = 12
Parts = npt.NDArray[np.int64]


def test_lag_flight_and_queue_of_every_step_are_those_of_the_entries_it_was_made_of(
    config: Config, client: Client, keys: Keys, tmp_path: Path
) -> None:
    run = small(
        config,
        save_model(tmp_path / "model"),
        "admission.max_staleness=3",
        "rollout.lag=2",
        "evaluation.prompts=1",
        "evaluation.every=1000",
        "learner.checkpoint_every=100000",  # so that every entry stays in the stream
        "learner.steps=100000",
        "learner.record_bytes=0",
    )
    files, log = [tmp_path / "config.yaml", tmp_path / "fresh.yaml"], tmp_path / "log"
    files[0].write_text(dump_config(run))
    files[1].write_text(dump_config(load_config(files[0], ["rollout.lag=0"], {})))
    control = ControlState(client, keys)
    servers = [["-m", "rollout", "--config", str(file), "--server-id", f"r{i}"] for i, file in enumerate(files)]
    with processes(["-m", "learner", "--config", str(files[0])], *servers, log=log) as running:

        def both_served_until_the_last_step() -> bool:
            assert all(process.poll() is None for process in running), log.read_text()[-3000:]
            rows = control.history()
            return len(rows) > STEPS and len({arm for row in rows for arm in row["by_arm"]}) == 2

        wait_for(f"step {STEPS} and groups of both servers", 180, both_served_until_the_last_step)
        rows = control.history()
        entries = {int(fields[b"prompt_index"]): fields for _, fields in client.xrange(keys.groups)}

    for row in rows:
        parts = np.concatenate([parts_of(entries[i], row["policy_version"]) for i in row["prompt_indices"]])
        assert (parts >= 0).all()
        for column, name in enumerate(("staleness", "lag", "flight", "queue")):
            assert row[f"{name}_mean"] == pytest.approx(parts[:, column].mean()), (row["step"], name)
            assert row[f"{name}_max"] == parts[:, column].max()
        assert row["staleness_mean"] == pytest.approx(row["lag_mean"] + row["flight_mean"] + row["queue_mean"])
    assert max(row["lag_max"] for row in rows) == 2
    assert max(row["flight_max"] + row["queue_max"] for row in rows) > 0, "it ran freely"
    counted = [sum(row["by_arm"].get(arm, {}).get("groups", 0) for row in rows) for arm in ("lag 0", "lag 2")]
    assert sum(counted) == 4 * len(rows)


def parts_of(fields: dict[bytes, bytes], consumed_at: int) -> Parts:
    """(staleness, lag, flight, queue) of every trained token of an entry, [n, 4]: no version was ever abandoned."""
    group, latest = decode_group(fields[b"payload"]), int(fields[b"latest"])
    drawn = np.concatenate([t.token_versions()[t.loss_mask] for t in group.trajectories])
    lag = np.minimum(group.lag, latest - drawn)
    columns: list[Any] = [consumed_at - drawn, lag, latest - drawn - lag, np.full_like(drawn, consumed_at - latest)]
    return np.stack(columns, axis=1)
