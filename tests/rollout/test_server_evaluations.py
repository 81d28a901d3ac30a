"""Held-out evaluations on a rollout server: leased, at one version, kept apart from training data."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from shared.config import Config
from shared.errors import StoreError
from shared.store import PolicyStore
from tests.conftest import RedisServer
from tests.rollout.run import Run, parts_of, served, serving, small, until, versions_of
from tests.rollout.worlds import HELDOUT, Hanging

pytestmark = [pytest.mark.asyncio, pytest.mark.system]


async def test_an_evaluation_is_answered_by_one_version_and_not_trained_on(config: Config, tiny_model: Path) -> None:
    run = Run(small(config, tiny_model))
    run.publish()
    run.control.request_evaluation(0)
    async with serving(parts_of(run.config)) as server:
        await until(lambda: bool(run.control.evaluations()), "the result", server)
        await until(lambda: run.unapplied() == 8, "groups", server)
    [result] = run.control.evaluations()
    assert (result.policy_version, result.prompts, result.server_id) == (0, 8, "r0")
    assert result.accuracy == sum(best_is_even(run, HELDOUT + i) for i in range(8)) / 8
    assert 1 <= result.mean_length <= 6
    assert run.control.pending_evaluations() == []
    assert all(entry.prompt_index < HELDOUT for entry in run.read())


def best_is_even(run: Run, index: int) -> bool:
    """What greedy decoding answers first, by the model itself."""
    prompt = [10, 11, index % 200]
    with torch.no_grad():
        return int(run.model(torch.tensor([prompt])).logits[0, -1].argmax()) % 2 == 0


async def test_an_evaluation_beyond_the_lag_is_a_detour_that_no_group_takes(
    config: Config, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real store, which does not answer at first: groups do not mind."""
    asked_by: list[threading.Thread] = []
    truly = PolicyStore.versions

    def at_last(self: PolicyStore) -> list[int]:
        asked_by.append(threading.current_thread())
        if len(asked_by) == 1:
            raise StoreError("no answer")
        return truly(self)

    monkeypatch.setattr(PolicyStore, "versions", at_last)
    run = Run(small(config, tiny_model, "rollout.lag=1", "admission.max_staleness=4000"))
    run.publish()
    run.step()
    run.publish()
    async with serving(parts_of(run.config)) as server:
        await until(lambda: run.unapplied() > 8, "groups before the detour", server)
        run.control.request_evaluation(1)
        await until(lambda: bool(run.control.evaluations()), "the result", server)
        until_then = run.unapplied()
        await until(lambda: run.unapplied() > until_then + 8, "groups after the detour", server)
    [result] = run.control.evaluations()
    assert result.policy_version == 1
    assert versions_of(run.groups()) == {0}
    assert len(asked_by) > 1
    assert threading.main_thread() not in asked_by, "groups are drawn while the store takes its time"


async def test_a_detour_s_versions_are_fetched_before_the_server_drains(
    config: Config, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real store, with a slow line: groups are appended until the newer version is there."""
    run = Run(small(config, tiny_model, "rollout.lag=1", "admission.max_staleness=4000"))
    parts = parts_of(run.config)
    states: list[tuple[int, str]] = []  # of the server, as each version was asked for
    truly = PolicyStore.hold

    def slowly(self: PolicyStore, version: int, *given: Any) -> Any:
        states.append((version, str(parts.status.heartbeat.status["state"])))
        if version == 1:
            before, ends = run.unapplied(), time.monotonic() + 60
            while run.unapplied() < before + 8 and time.monotonic() < ends:
                time.sleep(0.01)
            assert run.unapplied() >= before + 8, "groups go on"
        return truly(self, version, *given)

    monkeypatch.setattr(PolicyStore, "hold", slowly)
    run.publish()
    run.step()
    run.publish()
    async with serving(parts) as server:
        await until(lambda: run.unapplied() > 8, "groups before the detour", server)
        run.control.request_evaluation(1)
        await until(lambda: bool(run.control.evaluations()), "the result", server)
        then = run.unapplied()
        await until(lambda: run.unapplied() > then + 8, "groups after the detour", server)
    assert [version for version, _ in states] == [0, 0, 1], "and the way back needs nothing more"
    assert not any(state.startswith(("draining", "evaluating")) for _, state in states)
    assert versions_of(run.groups()) == {0}


async def test_an_evaluation_that_was_begun_is_given_back_by_a_server_that_stops(
    config: Config, tiny_model: Path
) -> None:
    run = Run(small(config, tiny_model, "environment.path=tests.rollout.worlds:Hanging"))
    run.publish()
    Hanging.release.clear()
    run.control.set_paused(True)  # no groups
    run.control.request_evaluation(0)
    async with serving(parts_of(run.config)) as server:
        await until(lambda: run.state_of() == "evaluating version 0", "the evaluation", server)
    Hanging.release.set()
    assert run.control.claim_evaluation(0, 1.0, "rollout:another")


async def test_an_evaluation_that_fails_is_given_back_and_said(config: Config, tiny_model: Path) -> None:
    broken = [HELDOUT, HELDOUT + 1]
    overrides = ["environment.path=tests.rollout.worlds:Failing", f"environment.params.broken={broken}"]
    run = Run(small(config, tiny_model, *overrides))
    run.publish()
    run.control.request_evaluation(0)
    async with serving(parts_of(run.config)) as server:
        await until(lambda: len(run.control.events()) == 3, "three attempts", server)
        await until(lambda: run.unapplied() == 8, "groups, which go on", server)
    assert "ZeroDivisionError: the scorer is broken" in run.control.events()[0]["text"]
    assert run.control.evaluations() == []
    assert run.control.claim_evaluation(0, 1.0, "rollout:another"), "another server can claim it"


async def test_an_evaluation_of_a_version_that_is_refused_is_given_up_and_the_served_one_returns(
    config: Config, tiny_model: Path
) -> None:
    run = Run(small(config, tiny_model, "rollout.lag=1", "admission.max_staleness=12"))
    run.publish()
    run.step()
    run.publish(run.lie())
    run.control.set_paused(True)
    async with serving(parts_of(run.config)) as server:
        await until(lambda: served(run) == 0, "the version that the lag allows", server)
        run.control.request_evaluation(1)
        await until(lambda: "evaluation failed" in {e["kind"] for e in run.control.events()}, "the end of it", server)
        run.control.set_paused(False)
        await until(lambda: run.unapplied() == 52, "groups", server)
    assert versions_of(run.groups()) == {0}
    assert run.control.evaluations() == []
    kinds = [event["kind"] for event in run.said()]
    assert kinds == ["evaluation failed", "version refused"], "once: each try costs a fresh engine"


async def test_at_maxmemory_an_evaluation_that_fails_is_given_back_and_the_server_lives(
    config: Config, tiny_model: Path, own_redis: RedisServer
) -> None:
    there = config.model_copy(update={"redis": config.redis.model_copy(update={"url": own_redis.url})})
    run = Run(small(there, tiny_model, "rollout.lag=1"))
    run.publish()
    run.step()
    run.publish(run.lie())
    run.control.set_paused(True)
    run.control.request_evaluation(1)
    run.client.config_set("maxmemory", 1)
    parts = parts_of(run.config)
    refusals = parts.metrics.sync_failures.labels("unproven")
    async with serving(parts) as server:
        await until(lambda: refusals._value.get() == 3, "the refusal", server)
        await until(lambda: served(run) == 0, "the version that the lag allows", server)
        run.client.config_set("maxmemory", 0)
        run.control.set_paused(False)
        await until(lambda: run.unapplied() == 8, "groups", server)
    assert run.said() == []
    assert run.control.claim_evaluation(1, 9, "another")


async def test_a_store_that_does_not_answer_puts_an_evaluation_beyond_the_lag_off(
    config: Config, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real store, which fails once, as one far away may."""
    run = Run(small(config, tiny_model, "rollout.lag=1"))
    run.publish()
    run.publish()
    run.control.request_evaluation(1)
    asked: list[threading.Thread] = []
    truly = PolicyStore.versions

    def far_away(store: PolicyStore) -> list[int]:
        asked.append(threading.current_thread())
        if len(asked) == 1:
            raise StoreError("the line is down")
        return truly(store)

    monkeypatch.setattr(PolicyStore, "versions", far_away)
    async with serving(parts_of(run.config)) as server:
        await until(lambda: [r.policy_version for r in run.control.evaluations()] == [1], "the evaluation", server)
    assert len(asked) == 2, "no more often than another server's claim is looked at"
    assert threading.main_thread() not in asked, "the event loop goes on meanwhile"
