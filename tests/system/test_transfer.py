"""A whole run whose weights go over the wire: a real learner, a real vLLM, and a second server that dies on the way."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from shared.config import load_config
from shared.control import ControlState
from shared.keys import Keys
from shared.redis_client import connect
from shared.store import PolicyStore
from shared.tensor_table import has_weights, read_table
from tests.learner.transfer.peer import Peer
from tests.system.conftest import Run

pytestmark = [pytest.mark.vllm, pytest.mark.system, pytest.mark.timeout(300)]

STEPS = 10


def test_weights_go_to_vllm_over_the_wire_proven_and_by_files_when_a_peer_dies(make_run: Callable[..., Run]) -> None:
    run = make_run(
        "wire",
        "store.transfer.kind=gloo",
        "store.full_every=256",
        "rollout.max_lag=0",
        "model.tiny.warm_start_accuracy=0.12",
        "admission.max_staleness=0",
        "learner.learning_rate=1e-3",
        "learner.warmup_steps=0",
        "learner.groups_per_batch=8",
        "learner.retain_versions=100",
        f"learner.steps={STEPS}",
        f"evaluation.every={STEPS}",
    ).start()
    store = PolicyStore(run.folder / "policy")
    run.wait_for("the first version", 120, store.versions)
    client = connect(load_config(run.folder / "config.yaml", [], {}))
    control = ControlState(client, Keys("wire"))
    peer = Peer(client, Keys("wire"), "dying", [row.shape for row in read_table(store.folder(0))])
    try:
        run.wait_for("both servers to receive a version", 120, lambda: peer.versions)
        peer.fault = "breaks off"
        event = run.wait_for(
            "the failure to be said", 60, lambda: [e for e in control.events() if "transfer" in e["kind"]]
        )
        control.leave("rollout:dying")  # its lease has run out
    finally:
        peer.stop()
    client.close()
    assert event[0]["text"].endswith("left out of the next 8 versions: dying"), event
    assert run.wait(120) == 0, run.output

    rows = run.rows()
    assert [row["staleness_max"] for row in rows] == [0] * STEPS
    assert max(row["floor_max_nats"] for row in rows) < 1e-3
    assert min(row["token_ess"] for row in rows) > 0.9999
    files = {version: has_weights(store.manifest(version)) for version in store.versions()}
    failed = peer.versions[-1] + 1
    assert f"version {failed} goes by files" in event[0]["text"]
    assert (files[0], files[failed], files[max(files)]) == (True, True, False)
    assert not any(files[version] for version in range(1, failed))
    assert run.summary["groups_dropped"] == {}
    assert run.summary["groups_lost"] == 0
