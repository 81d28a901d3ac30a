"""A run that was killed and started again goes on where it was."""

import os
import signal
from collections import Counter
from collections.abc import Callable

import pytest

from tests.system.conftest import Run

pytestmark = [pytest.mark.vllm, pytest.mark.system, pytest.mark.timeout(420)]


def test_killed_learner_then_killed_rollout_server_then_the_end(make_run: Callable[..., Run]) -> None:
    run = make_run("again", "learner.steps=40", "learner.checkpoint_every=8", "evaluation.every=16")

    run.start().reach_step(12)
    os.kill(run.pid_of("learner"), signal.SIGKILL)
    assert run.wait(30) == 1
    assert "learner was killed by SIGKILL; its last log lines" in run.output
    first_life = run.last_step
    versions = max(row["policy_version"] for row in run.rows())

    run.start("--resume").reach_step(first_life + 6)
    os.kill(run.pid_of("rollout:r0"), signal.SIGKILL)
    assert run.wait(30) == 1
    assert "rollout:r0 was killed by SIGKILL; its last log lines" in run.output

    assert run.start("--resume").wait(200) == 0, run.output
    rows = run.rows()
    assert [row["step"] for row in rows] == list(range(1, 41)), "steps neither skip nor repeat"
    published = [row["policy_version"] for row in rows]
    assert published == sorted(published), "versions only grow"
    assert published[-1] > versions
    taken_back = run.rows("history.abandoned.jsonl")
    assert taken_back, "steps after the last checkpoint were taken back, and are kept to look at"
    applied = Counter(index for row in rows for index in row["prompt_indices"])
    assert set(applied.values()) == {1}
    summary = run.summary
    assert (summary["groups_lost"], summary["groups_applied_twice"]) == (0, 0)
    assert summary["groups_applied"] == 40 * 32
    assert summary["heldout_accuracy_end"] > summary["heldout_accuracy_start"]
