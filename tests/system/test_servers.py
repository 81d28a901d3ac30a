"""Several rollout servers on one run, on different engines; one joins and leaves while it goes on."""

import signal
from collections.abc import Callable

import pytest

from tests.system.conftest import Run

pytestmark = [pytest.mark.vllm, pytest.mark.system, pytest.mark.timeout(300)]


def test_two_servers_share_the_work_and_a_third_comes_and_goes(make_run: Callable[..., Run]) -> None:
    run = make_run(
        "fleet",
        "learner.groups_per_batch=8",
        "rollout.groups_in_flight=4",
        "evaluation.prompts=16",
        "learner.steps=100000",
    )
    run.start().reach_step(2)

    def groups_of(server: str) -> int:
        return int(run.members().get(f"rollout:{server}", {}).get("groups", 0))

    _, third = (run.join(name, "rollout.engine={kind: transformers, device: cpu}") for name in ("r1", "r9"))
    run.wait_for("groups from all three", 180, lambda: min(groups_of(name) for name in ("r0", "r1", "r9")) >= 2)
    third.send_signal(signal.SIGTERM)
    assert third.wait(timeout=60) == 0
    run.wait_for("r9 to be off the list", 60, lambda: "rollout:r9" not in run.members())
    run.reach_step(run.last_step + 2)

    assert run.process is not None
    run.process.send_signal(signal.SIGINT)
    assert run.wait(60) == 130
    summary = run.summary
    assert (summary["groups_lost"], summary["groups_applied_twice"]) == (0, 0)
    assert summary["groups_applied"] == 8 * summary["steps"]
    indices = [index for row in run.rows() for index in row["prompt_indices"]]
    assert len(indices) == len(set(indices)), "no prompt was given to two servers"
