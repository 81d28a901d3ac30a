"""How a rollout server takes up versions, and what it does with those that it cannot prove."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rollout.engines.transformers import TransformersEngine
from shared.config import Config
from shared.errors import DeadlineError, StoreError, UnprovenVersionError
from shared.manifest import Manifest
from shared.store import PolicyStore
from shared.types import Float32Array, Int32Array
from tests.rollout.models import logprobs_of
from tests.rollout.run import Run, parts_of, served, serving, small, until, versions_of
from tests.rollout.worlds import Patient

pytestmark = [pytest.mark.asyncio, pytest.mark.system]

PATIENT = ("environment.path=tests.rollout.worlds:Patient", "rollout.sampling.max_tokens=20")
FIRST = list(range(8))  # what there is credit for before anything is applied


def refused(run: Run) -> Any:
    return (run.control.status_of("rollout:r0") or {}).get("refused_version")


async def test_a_new_version_is_loaded_proven_and_served(config: Config, tiny_model: Path) -> None:
    run = Run(small(config, tiny_model))
    run.publish()
    async with serving(parts_of(run.config)) as server:
        await until(lambda: run.unapplied() == 8, "the first groups", server)
        run.step()
        run.publish(applied=list(range(8)))
        await until(lambda: run.unapplied() == 8, "the groups of the next version", server)
    fresh = [group for group in run.groups() if group.prompt_index >= 8]
    assert versions_of(fresh[-4:]) == {1}
    t = fresh[-1].trajectories[0]
    whole = [*fresh[-1].prompt_ids.tolist(), *t.token_ids.tolist()]
    np.testing.assert_allclose(t.behavior_logprobs, logprobs_of(run.model, whole)[2:], atol=1e-4)


async def test_a_lag_serves_an_ancestor_of_the_latest(config: Config, tiny_model: Path) -> None:
    run = Run(small(config, tiny_model, "rollout.lag=2"))
    for _ in range(4):
        run.publish()
        run.step()
    async with serving(parts_of(run.config)) as server:
        await until(lambda: run.unapplied() == 8, "groups", server)
    assert versions_of(run.groups()) == {1}
    assert {group.lag for group in run.groups()} == {2}


async def test_a_restored_learner_s_lineage_is_followed_although_its_numbers_jump(
    config: Config, tiny_model: Path
) -> None:
    run = Run(small(config, tiny_model, "rollout.lag=1"))
    for _ in range(3):
        run.publish()
        run.step()
    run.publish(restored_from=1)
    run.control.request_evaluation(2)  # of the abandoned branch: answered by a later version, or not at all
    async with serving(parts_of(run.config)) as server:
        await until(lambda: run.unapplied() == 8, "groups", server)
        assert run.version == 13
        assert versions_of(run.groups()) == {1}
        assert run.control.evaluations() == []
        run.publish(applied=list(range(8)))
        await until(lambda: run.unapplied() == 8, "groups of the new branch", server)
        await until(lambda: bool(run.control.evaluations()), "the answer", server)
    assert versions_of(run.groups()) <= {1, 13}
    assert run.control.evaluations()[0].policy_version == 13


async def test_groups_that_end_while_a_version_is_unproven_wait_for_the_proof(
    config: Config, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real engine, with a proof that takes its time: what it drew meanwhile is not in the stream."""
    run = Run(small(config, tiny_model))
    run.publish()
    proving, go_on = asyncio.Event(), asyncio.Event()
    truly = TransformersEngine.logprobs

    async def slowly(self: TransformersEngine, token_ids: Int32Array) -> Float32Array:
        if self.policy_version == 1:
            proving.set()
            await go_on.wait()
        return await truly(self, token_ids)

    monkeypatch.setattr(TransformersEngine, "logprobs", slowly)
    parts = parts_of(run.config)
    async with serving(parts) as server:
        await until(lambda: run.unapplied() == 8, "the first groups", server)
        run.step()
        run.control.set_paused(True)  # until the new version is loaded, so that it draws all that is still to come
        run.publish(applied=list(range(8)))
        await asyncio.wait_for(proving.wait(), 60)
        run.control.set_paused(False)
        await until(lambda: run.leased() == 4, "groups of the unproven version", server)
        await asyncio.sleep(0.3)
        assert versions_of(run.groups()) == {0}
        go_on.set()
        await until(lambda: run.unapplied() == 8, "the groups to be appended", server)
    assert versions_of(run.groups()[8:]) == {1}
    assert parts.metrics.environment_failures.labels("engine")._value.get() == 0, "they waited, nothing was thrown away"


async def test_a_torn_version_is_not_loaded_and_the_proven_one_goes_on(config: Config, tiny_model: Path) -> None:
    run = Run(small(config, tiny_model))
    run.publish()
    parts = parts_of(run.config)
    async with serving(parts) as server:
        await until(lambda: run.unapplied() == 8, "the first groups", server)
        run.step()
        manifest_of_0 = run.store.folder(0)
        run.publish()
        weights = run.store.folder(1) / "model.safetensors"
        whole = weights.read_bytes()
        weights.write_bytes(whole[:-4] + b"torn")
        failures = parts.metrics.sync_failures.labels("store")._value
        before = failures.get()
        await until(lambda: failures.get() > before, "a refusal", server)
        assert manifest_of_0.exists()
        weights.write_bytes(whole)
        await until(lambda: parts.status.heartbeat.status["policy_version"] == 1, "the healed version", server)


async def test_a_version_that_stays_unreadable_stops_the_server(
    config: Config, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rollout.fetch.SYNC_DEADLINE_S", 0.3)
    run = Run(small(config, tiny_model))
    run.publish()
    (run.store.folder(0) / "model.safetensors").unlink()
    with pytest.raises(StoreError, match=r"for 0.3 s no version could be read: version 0: model.safetensors"):
        async with serving(parts_of(run.config)) as server:
            await asyncio.wait({server}, timeout=60)


async def test_a_version_that_cannot_be_proven_is_refused_and_the_next_one_served(
    config: Config, tiny_model: Path
) -> None:
    run = Run(small(config, tiny_model))
    run.publish()
    parts = parts_of(run.config)
    async with serving(parts) as server:
        await until(lambda: run.unapplied() == 8, "the first groups", server)
        run.control.set_paused(True)  # so that the freed credit is not used by version 0
        run.step()
        run.publish(run.lie(), applied=FIRST)
        await until(lambda: run.state_of().startswith("waiting for a newer version"), "the refusal", server)
        status = run.control.status_of("rollout:r0")
        assert status is not None
        assert (status["policy_version"], status["refused_version"]) == (-1, 1)
        assert status["refused_nats"] == pytest.approx(1.0, abs=1e-4)
        assert (
            "version 1 is not what the engine serves: its probe is off by 1 nats, 0.001 is allowed" in status["state"]
        )
        run.control.set_paused(False)
        await asyncio.sleep(0.2)
        assert (run.unapplied(), run.leased()) == (0, 0), "nothing is generated by what is not proven"
        run.publish()
        await until(lambda: run.unapplied() == 8, "the groups of the next version", server)
        await until(lambda: refused(run) is None, "the refusal to be taken back", server)
    assert versions_of(run.groups()[8:]) == {2}
    [event] = run.said()
    assert (event["kind"], event["by"]) == ("version refused", "r0")
    assert "version 1 is not what the engine serves" in event["text"]


async def test_a_server_that_can_prove_no_version_ends_with_the_reason(config: Config, tiny_model: Path) -> None:
    run = Run(small(config, tiny_model, "rollout.max_refused_versions=2"))
    run.publish(run.lie())

    async def serve() -> None:
        async with serving(parts_of(run.config)) as server:
            await until(lambda: refused(run) == 0, "the refusal", server)
            run.publish(run.lie())
            await asyncio.wait({server}, timeout=60)

    with pytest.raises(UnprovenVersionError, match=r"versions \[0, 1\] could not be proven .* off by 1 nats"):
        await serve()
    assert run.read() == []
    assert run.control.members() == {}


async def test_a_server_whose_first_version_is_refused_begins_with_the_next(config: Config, tiny_model: Path) -> None:
    run = Run(small(config, tiny_model))
    run.publish(run.lie())
    async with serving(parts_of(run.config)) as server:
        await until(lambda: refused(run) == 0, "the refusal", server)
        run.publish()
        await until(lambda: run.unapplied() == 8, "groups", server)
    assert versions_of(run.groups()) == {1}


async def test_groups_in_flight_when_a_version_is_refused_are_drawn_again(config: Config, tiny_model: Path) -> None:
    run = Run(small(config, tiny_model, *PATIENT))
    run.publish()
    Patient.release.clear()
    parts = parts_of(run.config)
    async with serving(parts) as server:
        await until(lambda: (run.unapplied(), run.leased()) == (7, 1), "all but the group that waits", server)
        run.control.set_paused(True)
        run.publish(run.lie(), applied=list(range(1, 8)))
        await until(lambda: refused(run) == 1 and run.leased() == 0, "its prompt to be given back", server)
        run.control.set_paused(False)
        Patient.release.set()
        run.step()
        run.publish()
        await until(lambda: run.unapplied() == 8, "the groups of the next version", server)
    again = {group.prompt_index: group for group in run.groups()[7:]}
    assert sorted(again) == [0, *range(8, 15)]
    assert versions_of(list(again.values())) == {2}
    assert run.client.hlen(run.keys.attempts) == 0, "it was not the prompt that failed"
    assert parts.metrics.groups_discarded.labels("unproven version")._value.get() == 1


async def test_a_version_is_fetched_while_groups_are_drawn_and_appended(
    config: Config, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real store, with a file system that takes its time."""
    run = Run(small(config, tiny_model))
    run.publish()
    go_on = threading.Event()
    truly: Callable[..., tuple[Manifest, Path]] = PolicyStore.hold

    def slowly(store: PolicyStore, version: int, *more: Any) -> tuple[Manifest, Path]:
        assert version == 0 or go_on.wait(20)
        return truly(store, version, *more)

    monkeypatch.setattr(PolicyStore, "hold", slowly)
    parts = parts_of(run.config)
    async with serving(parts) as server:
        await until(lambda: run.unapplied() == 8, "the first groups", server)
        run.step()
        run.publish(applied=FIRST)
        await until(lambda: run.state_of() == "fetching version 1", "the fetch", server)
        await until(lambda: run.unapplied() == 4, "what credit there is for the version before", server)
        go_on.set()
        await until(lambda: served(run) == 1, "the new version", server)
    assert versions_of(run.groups()[:12]) == {0}
    status = parts.status.heartbeat.status
    assert 0 < status["pause_median_s"] <= status["pause_p99_s"] < 1
    stages = {key[0] for key in parts.metrics.sync_stage_seconds._metrics}
    assert stages == {"fetch", "stage", "wait", "load", "tensors", "probe"}


@pytest.mark.parametrize("sync", ["in_flight", "drain", "between_groups"])
async def test_a_group_in_flight_spans_versions_only_where_that_is_configured(
    config: Config, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, sync: str
) -> None:
    """Prompt 0 waits between its turns for as long as the test likes; the others are quick."""
    monkeypatch.setattr("rollout.server.stop_token_ids", lambda *_: tuple(range(0, 258, 2)))  # turns end soon
    run = Run(small(config, tiny_model, *PATIENT, f"rollout.sync={sync}", "rollout.sync_gap_s=30"))
    run.publish()
    Patient.release.clear()
    async with serving(parts_of(run.config)) as server:
        await until(lambda: (run.unapplied(), run.leased()) == (7, 1), "all but the group that waits", server)
        run.control.set_paused(True)
        run.step()
        run.publish(applied=list(range(1, 8)))
        if sync == "in_flight":
            await until(lambda: served(run) == 1, "the new version, at once", server)
        else:
            await until(lambda: run.state_of().startswith("waiting for the groups in flight"), "the wait", server)
        run.control.set_paused(False)
        more = {"in_flight": 7, "drain": 0, "between_groups": 3}[sync]  # a version behind there is half the credit
        await until(lambda: run.unapplied() == more, "what may be drawn meanwhile", server)
        if sync == "drain":
            await asyncio.sleep(0.2)
            assert (run.unapplied(), run.leased()) == (0, 1), "nothing begins before the switch"
        Patient.release.set()
        await until(lambda: run.unapplied() == 8, "all credit to be used", server)
    groups = {group.prompt_index: group for group in run.groups()}
    spans = [span for t in groups[0].trajectories for span in t.versions]
    assert {span.policy_version for span in spans} == ({0, 1} if sync == "in_flight" else {0})
    assert all(len(versions_of([group])) == 1 for index, group in groups.items() if index)
    fresh = [groups[index] for index in sorted(groups) if index >= 8]
    assert versions_of(fresh) == ({0, 1} if sync == "between_groups" else {1})


async def test_the_wait_for_a_gap_is_bounded_and_so_is_the_drain(config: Config, tiny_model: Path) -> None:
    overrides = ["rollout.sync=between_groups", "rollout.sync_gap_s=0.1", "learner.idle_deadline_s=1"]
    run = Run(small(config, tiny_model, *PATIENT, *overrides))
    run.publish()
    Patient.release.clear()

    async def serve() -> None:
        async with serving(parts_of(run.config)) as server:
            await until(lambda: run.leased() == 1 and run.unapplied() == 7, "all but the group that waits", server)
            run.control.beat("learner", {"state": "training"}, 30)
            run.publish()
            await asyncio.wait({server}, timeout=60)

    with pytest.raises(DeadlineError, match=r"waited 1 s .* for the groups in flight to end.* is between_groups"):
        await serve()
    Patient.release.set()


@pytest.mark.parametrize(("lag", "joins_with"), [(0, 3), (2, 1)])
async def test_a_server_that_returns_joins_with_the_newest_version_that_its_lag_allows(
    config: Config, tiny_model: Path, lag: int, joins_with: int
) -> None:
    run = Run(small(config, tiny_model, f"rollout.lag={lag}"))
    run.publish()
    async with serving(parts_of(run.config)) as server:
        await until(lambda: run.unapplied() == 8, "groups of its first life", server)
    for _ in range(3):
        run.step()
        run.publish(applied=FIRST)
    async with serving(parts_of(run.config)) as server:
        await until(lambda: run.unapplied() == 8, "groups of its second life", server)
    assert versions_of(run.groups()[8:]) == {joins_with}
