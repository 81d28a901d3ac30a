"""The synchronous run: vLLM's log-probs and the learner's are of the same weights, version after version."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from shared.store import PolicyStore
from tests.system.conftest import Run

pytestmark = [pytest.mark.vllm, pytest.mark.system, pytest.mark.timeout(300)]

UPDATES = 10


@pytest.mark.parametrize("tied", [True, False])
def test_engine_and_learner_agree_before_and_after_ten_updates(make_run: Callable[..., Run], tied: bool) -> None:
    run = make_run(
        "synchronous",
        f"model.path=.cache/models/{'demo' if tied else 'untied'}",
        f"model.tiny.tie_word_embeddings={tied}",
        f"model.tiny.warm_start_accuracy={0.12 if tied else 0.06}",
        "admission.max_staleness=0",
        "learner.learning_rate=1e-3",
        "learner.warmup_steps=0",
        "learner.groups_per_batch=16",
        "learner.checkpoint_every=7",
        "learner.retain_versions=100",
        f"learner.steps={UPDATES + 1}",
        f"evaluation.every={UPDATES}",
    )
    summary = run.finish(200)
    rows = run.rows()
    assert [row["staleness_max"] for row in rows] == [0] * (UPDATES + 1)
    assert max(row["floor_max_nats"] for row in rows) < 1e-3
    assert min(row["token_ess"] for row in rows) > 0.9999
    assert summary["groups_dropped"] == {}

    store = PolicyStore(run.folder / "policy")
    probes = [store.manifest(version).probe.logprobs for version in store.versions()]
    flat = [np.concatenate([np.asarray(sequence) for sequence in probe]) for probe in probes]
    moved = [float(np.abs(b - a).max()) for a, b in itertools.pairwise(flat)]
    assert len(moved) >= UPDATES
    assert min(moved[:UPDATES]) > 0.1, f"every update must move some log-prob: {moved}"
