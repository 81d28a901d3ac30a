"""The rollout server as a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from rollout.__main__ import _until_stopped
from shared.config import Config
from shared.errors import TrustbatchError
from shared.manifest import Probe
from shared.probe import ask
from shared.process import UNFINISHED, StopFlag
from shared.types import Group
from shared.wishes import Wishes, incarnation
from tests.rollout.models import PROBE, logprobs_of
from tests.rollout.run import Run, parts_of, small

pytestmark = pytest.mark.system
VLLM = (
    "rollout.engine.kind=vllm",
    "rollout.engine.max_model_len=512",
    "rollout.engine.max_num_seqs=32",
    "rollout.engine.kv_cache_gib=0.1",
)


@contextmanager
def started(run: Run, folder: Path, *overrides: str, more: tuple[str, ...] = ()) -> Iterator[subprocess.Popen[str]]:
    """`python -m rollout`, killed at the end if it is still there."""
    command = [sys.executable, "-m", "rollout", "--config", str(run.write_config(folder / "c.yaml"))]
    command += [word for override in overrides for word in ("--set", override)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        [*command, "--server-id", "r0", *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait(run: Run, condition: Callable[[], bool], deadline_s: float = 60) -> None:
    ends = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < ends, f"waited {deadline_s} s; the server says: {run.state_of()}"
        time.sleep(0.05)


def test_sigterm_ends_the_server_in_order_although_its_scorers_hang(
    config: Config, tiny_model: Path, tmp_path: Path
) -> None:
    hanging = ("environment.path=tests.rollout.worlds:Hanging", "rollout.reward_deadline_s=600")
    run = Run(small(config, tiny_model, *hanging))
    run.publish()
    with started(run, tmp_path, more=("--again",)) as process:
        wait(run, lambda: run.leased() == 4)
        status = run.control.status_of("rollout:r0")
        assert status is not None
        for probe in ("livez", "readyz"):
            assert ask(status["metrics"].replace("metrics", probe)) == (True, "generating groups")
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=60)
    assert process.returncode == UNFINISHED, log
    assert run.leased() == 0
    assert run.control.members() == {}
    assert last_row(log)["reason"] == "SIGTERM"
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_a_server_that_an_operator_removes_is_not_to_be_started_again(
    config: Config, tiny_model: Path, tmp_path: Path
) -> None:
    run = Run(small(config, tiny_model))
    run.publish()
    wishes = Wishes(run.client, run.keys)
    wishes.drain("r0", "ann", True)
    with started(run, tmp_path, more=("--again",)) as process:
        wait(run, lambda: run.state_of() == "draining")
        wishes.dismiss("r0", incarnation(run.control.status_of("rollout:r0") or {}), "ann")
        _, log = process.communicate(timeout=60)
    assert process.returncode == 0, log
    assert last_row(log)["reason"] == "an operator has removed this server"
    assert (run.control.members(), wishes.draining()) == ({}, {})


def test_a_server_that_cannot_go_on_says_why_in_one_line_and_exits_with_1(
    config: Config, tiny_model: Path, tmp_path: Path
) -> None:
    run = Run(small(config, tiny_model, "rollout.max_refused_versions=1"))
    run.publish(Probe(PROBE, [[-1.0] * (len(row) - 1) for row in PROBE]))
    with started(run, tmp_path) as process:
        _, log = process.communicate(timeout=60)
    assert process.returncode == 1, log
    last = last_row(log)
    assert last["error"] == "UnprovenVersionError"
    assert last["component"] == "rollout:r0"
    assert "versions [0] could not be proven" in last["reason"]
    assert "version 0 is not what the engine serves: its probe is off by" in last["reason"]
    assert "Traceback" not in log
    assert run.groups() == []


@pytest.mark.asyncio
async def test_a_run_that_has_failed_is_no_orderly_end(config: Config, tiny_model: Path) -> None:
    run = Run(small(config, tiny_model))
    run.control.set_phase("failed", "the learner gave up")
    with pytest.raises(TrustbatchError, match="the run has failed"):
        await _until_stopped(parts_of(run.config), StopFlag())
    run.control.set_phase("finished")
    assert await _until_stopped(parts_of(run.config), StopFlag()) == "finished"


REFUSED = {
    "rollout.sampling.temperature=0": "rollout.sampling.temperature is 0.0; training needs",
    "redis.url=null": "redis.url is not set",
    "redis.username=sesame": "Redis refuses redis.username and redis.password",
    "environment={kind: reasoning_gym, dataset: no_such_task}": "environment.dataset is 'no_such_task'",
}


@pytest.mark.parametrize(("override", "message"), REFUSED.items())
def test_a_configuration_that_cannot_work_exits_with_2_and_plain_words(
    config: Config, tiny_model: Path, tmp_path: Path, override: str, message: str
) -> None:
    run = Run(small(config, tiny_model))
    with started(run, tmp_path, override) as process:
        _, log = process.communicate(timeout=60)
    assert process.returncode == 2, log
    assert message in log
    assert "Traceback" not in log
    assert "sesame" not in log


def last_row(log: str) -> dict[str, str]:
    """The last JSON line; Python's own resource tracker may have had a word after it."""
    row: dict[str, str] = json.loads([line for line in log.splitlines() if line.startswith("{")][-1])
    return row


def engine_pids(process: subprocess.Popen[str]) -> list[int]:
    """vLLM's own process or processes below the server."""
    children = [
        pid for path in Path(f"/proc/{process.pid}/task").glob("*/children") for pid in path.read_text().split()
    ]
    return [int(pid) for pid in children if "EngineCor" in Path(f"/proc/{pid}/comm").read_text()]


@pytest.mark.vllm
def test_vllm_serves_groups_evaluations_and_new_versions_until_its_process_dies(
    config: Config, tiny_model: Path, tmp_path: Path
) -> None:
    run = Run(small(config, tiny_model, *VLLM))
    run.publish()
    run.control.request_evaluation(0)
    with started(run, tmp_path) as process:
        wait(run, lambda: run.unapplied() == 8, 120)
        wait(run, lambda: len(run.control.evaluations()) == 1)
        for _ in range(2):
            check_logprobs(run, run.groups()[-4:])
            run.step()
            run.publish(applied=[group.prompt_index for group in run.groups()])
            wait(run, lambda: run.unapplied() == 8)
        assert {s.policy_version for g in run.groups()[-2:] for t in g.trajectories for s in t.versions} == {2}
        [engine] = engine_pids(process)
        os.kill(engine, signal.SIGKILL)
        _, log = process.communicate(timeout=60)
    assert process.returncode == 1, log
    assert "the vLLM engine is dead" in last_row(log)["reason"]
    assert run.leased() == 0
    assert run.control.evaluations()[0].policy_version == 0


@pytest.mark.vllm
def test_sigterm_ends_vllm_too_and_leaves_no_process(config: Config, tiny_model: Path, tmp_path: Path) -> None:
    long = ["rollout.sampling.max_tokens=400", "rollout.group_size=64", "admission.max_staleness=50"]
    run = Run(small(config, tiny_model, *VLLM, *long))
    run.publish()
    with started(run, tmp_path) as process:
        wait(run, lambda: run.unapplied() > 0, 120)
        engines = engine_pids(process)
        assert engines
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=60)
    assert process.returncode == 0, log
    assert run.leased() == 0
    assert not [pid for pid in engines if Path(f"/proc/{pid}").exists()]


def check_logprobs(run: Run, groups: list[Group]) -> None:
    """vLLM's log-probs are those of the published weights."""
    for group in groups:
        for t in group.trajectories:
            assert {span.policy_version for span in t.versions} == {run.version}
            expected = logprobs_of(run.model, [*group.prompt_ids.tolist(), *t.token_ids.tolist()])
            np.testing.assert_allclose(t.behavior_logprobs, expected[len(group.prompt_ids) - 1 :], atol=1e-3)
