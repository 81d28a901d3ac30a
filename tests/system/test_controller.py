"""The loop closed on a live run: the policy moves fast, servers lag, trust falls, and the controller takes lag away."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from services.lag import set_lag
from shared.config import Config
from shared.config.lag import LagSetting
from shared.config.load import dump_config
from shared.control import ControlState
from shared.keys import Keys
from shared.redis_client import Client
from shared.steering import CONTROLLER
from tests.rollout.models import save_model
from tests.rollout.run import small
from tests.system.processes import processes, wait_for

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

LAG = 8


def status(control: ControlState) -> dict[str, Any]:
    told = control.status_of("control-plane:here")
    assert told is not None
    with urllib.request.urlopen(str(told["address"]) + "v1/status", timeout=10) as answer:
        found: dict[str, Any] = json.loads(answer.read())
        return found


def test_where_trust_falls_the_controller_takes_staleness_away(
    config: Config, client: Client, keys: Keys, tmp_path: Path
) -> None:
    run = small(
        config,
        save_model(tmp_path / "model"),
        "control_plane.auth=none",
        "controller.enabled=true",
        "controller.patience=3",
        "controller.pause_token_ess=0",
        "controller.actions_per_hour=240",
        f"rollout.lag={LAG}",
        "rollout.sampling.max_tokens=2",
        "environment.path=tests.rollout.worlds:Shade",
        "evaluation.prompts=1",
        "evaluation.every=1000",
        "learner.learning_rate=3e-3",
        "learner.checkpoint_every=100000",
        "learner.steps=100000",
        "learner.record_bytes=0",
    )
    file, log = tmp_path / "config.yaml", tmp_path / "log"
    file.write_text(dump_config(run))
    control = ControlState(client, keys)
    rows: list[dict[str, Any]] = []
    commands = [
        ["-m", "learner", "--config", str(file)],
        ["-m", "rollout", "--config", str(file), "--server-id", "r0"],
        ["-m", "services.control_plane", "--config", str(file), "--id", "here"],
    ]

    def narrowed() -> bool:
        wish = control.lag_wish()
        return wish.by == CONTROLLER and int(wish.text) <= LAG // 2

    def fresher() -> bool:
        rows[:] = control.history()
        return len(rows) > LAG and max(row["lag_max"] for row in rows[-3:]) <= LAG // 2

    with processes(*commands, log=log) as running:
        wait_for(narrowed, "the controller", running, log)
        wait_for(fresher, "fresher data", running, log)
        shown = status(control)["controller"]
        set_lag(run, control, LagSetting(lag=LAG - 1), "ann")
        wait_for(lambda: "changed the lag" in str(control.events()), "the operator's word", running, log)

    before = [row for row in rows if row["lag_max"] == LAG]
    assert median(row["token_ess"] for row in before) < run.controller.token_ess
    assert max(row["staleness_mean"] for row in rows[-3:]) <= max(row["staleness_mean"] for row in before) - LAG // 2
    assert (shown["level"], shown["holder"]) == ("narrowed", "control-plane:here")
    assert shown["actions"]["narrow"] >= 1
    told = [event["text"] for event in control.events() if event["by"] == CONTROLLER]
    assert any(f"servers are to lag by at most {LAG // 2} versions instead of {LAG}" in text for text in told)
