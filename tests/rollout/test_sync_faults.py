"""Loads that go wrong, each at learning rate 1e-6: what an engine serves then is not what was published."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rollout.engines.renewable import RenewableEngine
from rollout.engines.transformers import TransformersEngine
from rollout.factory import build_engine
from rollout.fetch import Fetcher
from rollout.parts import Parts
from rollout.sync import Syncer
from shared.config import Config
from shared.errors import BrokenDownloadError, EngineError, StoreError, UnprovenVersionError
from tests.rollout.models import load_model, probe_of
from tests.rollout.run import Run, parts_of, small, until

LEARNING_RATE = 1e-6  # an optimizer's step moves every weight by about this much
NORMS = [f"model.layers.{layer}.input_layernorm.weight" for layer in (0, 1)]

pytestmark = pytest.mark.asyncio
Fault = Callable[[Any, dict[str, torch.Tensor]], None]  # the engine's model, and the weights before the load


def nothing_loaded(model: Any, old: dict[str, torch.Tensor]) -> None:
    model.load_state_dict(old)


def one_tensor_stale(model: Any, old: dict[str, torch.Tensor]) -> None:
    model.load_state_dict({NORMS[0]: old[NORMS[0]]}, strict=False)


def two_tensors_exchanged(model: Any, old: dict[str, torch.Tensor]) -> None:
    now = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict({NORMS[0]: now[NORMS[1]], NORMS[1]: now[NORMS[0]]}, strict=False)


def output_layer_stale(model: Any, old: dict[str, torch.Tensor]) -> None:
    """What a reload does to a tied model on vLLM's CPU build."""
    model.lm_head.weight = torch.nn.Parameter(old["lm_head.weight"])


def not_a_number(model: Any, old: dict[str, torch.Tensor]) -> None:
    model.load_state_dict({NORMS[1]: torch.full_like(old[NORMS[1]], torch.nan)}, strict=False)


class Faulty(TransformersEngine):
    """Does something wrong whenever it takes up a version after 0; with `heals`, only when it reloads."""

    def __init__(self, fault: Fault, heals: bool = False) -> None:
        super().__init__(dtype="float32")
        self._fault = fault
        self._heals = heals
        self.old: dict[str, torch.Tensor] = {}

    def _start(self, folder: Path, policy_version: int) -> None:
        super()._start(folder, policy_version)
        if policy_version > 0 and not self._heals:
            self._fault(self._model, self.old)

    @torch.no_grad()
    def _load(self, policy_version: int) -> float:
        if self._policy_version == 0:
            self.old = {name: tensor.clone() for name, tensor in self._model.state_dict().items()}
        seconds = super()._load(policy_version)
        self._fault(self._model, self.old)
        return seconds


def a_run(config: Config, tiny_model: Path, *overrides: str) -> tuple[Run, Parts]:
    run = Run(small(config, tiny_model, *overrides))
    run.step(0.1)  # away from norms of 1 and a padding token of 0, which no trained model has
    run.publish()
    return run, parts_of(run.config)


async def served_at_0(parts: Parts, fault: Fault, heals: bool = False) -> Syncer:
    engines = [Faulty(fault, heals)]

    def another() -> Faulty:
        engines.append(Faulty(fault, heals))
        engines[-1].old = engines[0].old
        return engines[-1]

    syncer = Syncer(parts, RenewableEngine(engines[0], another))
    await syncer.serve(0)
    assert syncer.served == 0
    return syncer


def configured_engine(config: Config) -> RenewableEngine:
    return RenewableEngine(build_engine(config, "r0")[0], lambda: build_engine(config, "r0")[0])


@pytest.mark.parametrize(
    ("fault", "wrong"),
    [
        (one_tensor_stale, f"1 of 25 tensors differ from the published ones: {NORMS[0]}"),
        (two_tensors_exchanged, f"2 of 25 tensors differ from the published ones: {NORMS[0]}, {NORMS[1]}"),
        (output_layer_stale, "1 of 25 tensors differ from the published ones: lm_head.weight"),
        (not_a_number, f"does not answer its probe: .* not finite; 1 of 25 tensors differ .*: {NORMS[1]}"),
        (nothing_loaded, r"since version 0 the probe moved by up to \S+ nats, in the engine by 0; 25 of 25 tensors"),
    ],
)
async def test_a_load_that_went_wrong_is_refused_by_what_is_wrong(
    config: Config, tiny_model: Path, fault: Fault, wrong: str
) -> None:
    run, parts = a_run(config, tiny_model)
    syncer = await served_at_0(parts, fault)
    run.step(LEARNING_RATE)
    run.publish()
    with pytest.raises(UnprovenVersionError, match=f"version 1 .*{wrong}"):
        await syncer.serve(1)
    assert (syncer.served, syncer.halted.is_set(), syncer.proven) == (-1, True, {0})
    assert parts.metrics.sync_failures.labels("unproven")._value.get() == 3  # loaded, loaded again, a fresh engine
    assert parts.metrics.refused_version._value.get() == 1
    status = parts.status.heartbeat.status
    assert (status["policy_version"], status["refused_version"]) == (-1, 1)
    assert (status["refused_nats"] is None) == (fault is not_a_number)
    [event] = run.control.events()
    assert (event["kind"], event["by"]) == ("version refused", "r0")
    assert "version 1 " in event["text"]


async def test_weights_that_a_living_engine_failed_to_load_draw_nothing(config: Config, tiny_model: Path) -> None:
    def fails(model: Any, old: dict[str, torch.Tensor]) -> None:
        raise EngineError("no memory left to load with")

    run, parts = a_run(config, tiny_model)
    syncer = await served_at_0(parts, fails)
    run.publish()
    with pytest.raises(EngineError, match="no memory left"):
        await syncer.serve(1)
    assert (syncer.served, syncer.halted.is_set()) == (-1, True)
    assert parts.status.heartbeat.status["policy_version"] == -1
    assert syncer.gate.is_set(), "groups in flight can end"


async def test_the_previous_version_s_files_under_a_new_name_are_refused(config: Config, tiny_model: Path) -> None:
    """Every checksum is right, and every tensor is the file's: only the probe knows."""
    run, parts = a_run(config, tiny_model)
    syncer = await served_at_0(parts, lambda model, old: None)
    run.step(LEARNING_RATE)
    moved = probe_of(run.model)
    run.model = load_model(run.store.folder(0))
    run.publish(moved)
    with pytest.raises(UnprovenVersionError, match="version 1 "):
        await syncer.serve(1)
    assert syncer.served == -1


async def test_weights_that_did_not_change_are_served_and_old_ones_under_a_new_name_refused(
    config: Config, tiny_model: Path
) -> None:
    """In bfloat16, where the probe cannot tell: a step of 1e-6 moves it less than rounding does."""
    run, parts = a_run(config, tiny_model, "model.dtype=bfloat16")
    run.publish(weights_of=1)
    syncer = Syncer(parts, configured_engine(run.config))
    await syncer.serve(1)
    run.publish(weights_of=1)
    await syncer.serve(2)
    assert syncer.served == 2
    run.publish(weights_of=3)
    with pytest.raises(
        UnprovenVersionError, match="version 3 has the weights of version 2, and the learner says that t"
    ):
        await syncer.serve(3)
    assert syncer.served == -1


async def test_what_a_fresh_engine_mends_is_served(config: Config, tiny_model: Path) -> None:
    run, parts = a_run(config, tiny_model)
    syncer = await served_at_0(parts, output_layer_stale, heals=True)
    run.step(LEARNING_RATE)
    run.publish()
    await syncer.serve(1)
    assert (syncer.served, syncer.halted.is_set()) == (1, False)
    assert parts.metrics.sync_failures.labels("unproven")._value.get() == 2
    assert parts.status.heartbeat.status["refused_version"] is None


async def test_versions_without_a_fault_are_all_proven(config: Config, tiny_model: Path) -> None:
    run, parts = a_run(config, tiny_model)
    syncer = await served_at_0(parts, lambda model, old: None)
    for size in (LEARNING_RATE, 0.0, 1e-5, 1e-3, 0.05):
        run.step(size)
        await syncer.serve(run.publish())
    assert syncer.proven == set(range(6))
    [failures] = parts.metrics.sync_failures.collect()
    assert {sample.value for sample in failures.samples if sample.name.endswith("_total")} == {0}
    assert parts.metrics.tensors_unchecked._value.get() == 0


async def test_a_bfloat16_engine_of_a_float32_learner_is_proven_with_a_floor_that_can_be_seen(
    config: Config, tiny_model: Path
) -> None:
    """At this learning rate most weights round to the same bfloat16: the engine's change is not the published one."""
    run, parts = a_run(config, tiny_model, "rollout.engine.dtype=bfloat16")
    syncer = Syncer(
        parts, RenewableEngine(build_engine(run.config, "r0")[0], lambda: build_engine(run.config, "r0")[0])
    )
    await syncer.serve(0)
    for size in (LEARNING_RATE, LEARNING_RATE, 1e-3):
        run.step(size)
        await syncer.serve(run.publish())
    status, metrics = parts.status.heartbeat.status, parts.metrics
    assert status["policy_version"] == 3
    assert 1e-3 < status["floor_mean_nats"] < status["proof_max_nats"] < 0.5
    assert 0.9 < status["floor_token_ess"] < 1 - 1e-6
    assert metrics.floor_max._value.get() == status["proof_max_nats"]
    assert metrics.floor_mean._value.get() == status["floor_mean_nats"]
    assert metrics.floor_token_ess._value.get() == status["floor_token_ess"]


async def test_an_engine_of_8_bits_is_proven_tensor_by_tensor_and_shows_what_it_costs(
    config: Config, tiny_model: Path
) -> None:
    run, parts = a_run(config, tiny_model, "rollout.engine.quantization=int8")
    syncer = Syncer(
        parts, RenewableEngine(build_engine(run.config, "r0")[0], lambda: build_engine(run.config, "r0")[0])
    )
    await syncer.serve(0)
    for size in (LEARNING_RATE, 1e-3):
        run.step(size)
        await syncer.serve(run.publish())
    status = parts.status.heartbeat.status
    assert status["policy_version"] == 2
    assert 1e-4 < status["floor_mean_nats"] < status["proof_max_nats"] < 0.5
    assert parts.metrics.tensors_unchecked._value.get() == 0


async def test_the_configured_tolerance_bounds_a_lower_precision(config: Config, tiny_model: Path) -> None:
    overrides = ["rollout.engine.dtype=bfloat16", "rollout.proof_tolerance_nats=1e-4"]
    run, parts = a_run(config, tiny_model, *overrides)
    syncer = Syncer(
        parts, RenewableEngine(build_engine(run.config, "r0")[0], lambda: build_engine(run.config, "r0")[0])
    )
    with pytest.raises(UnprovenVersionError, match=r"off by \S+ nats, 0.0001 is allowed"):
        await syncer.serve(0)


async def test_a_version_that_was_proven_before_has_to_show_itself_again(config: Config, tiny_model: Path) -> None:
    """A restored learner's lineage may lead back to it."""
    run, parts = a_run(config, tiny_model)
    trusted: list[set[int]] = []  # while each version was being loaded
    syncer = await served_at_0(parts, lambda model, old: trusted.append(set(syncer.proven)))
    run.step(LEARNING_RATE)
    await syncer.serve(run.publish())
    await syncer.serve(0)
    assert trusted == [{0}, {1}]
    assert syncer.proven == {0, 1}


async def test_only_failures_in_a_row_count_against_a_store_that_cannot_be_read(
    config: Config, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rollout.fetch.SYNC_DEADLINE_S", 0.0)
    run, parts = a_run(config, tiny_model)
    syncer = await served_at_0(parts, one_tensor_stale)
    run.publish(run.lie())
    await syncer.follow(8)
    await syncer.follow(1)  # it can be read, and is not proven
    await syncer.follow(8)
    syncer.fetcher.settle()  # and now 0 were wanted, say
    reading = asyncio.ensure_future(syncer.follow(8))
    told = "cannot read version 8: "
    await until(lambda: str(parts.status.heartbeat.status["state"]).startswith(told), "the reason", reading)
    await reading
    with pytest.raises(StoreError, match=r"for 0 s no version could be read: .*v00000008"):
        await syncer.follow(8)


async def test_parts_that_came_keep_a_server_waiting_unless_they_come_over_and_over(
    config: Config, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rollout.fetch.SYNC_DEADLINE_S", 0.0)
    fetcher = Fetcher(a_run(config, tiny_model)[1])
    for version, missing in ((1, 4), (1, 3), (2, 9), (2, 1)):
        await fetcher.cannot_read(version, BrokenDownloadError("the line is down", came=1, missing=missing))
    with pytest.raises(
        StoreError, match="no version could be read: the line is down"
    ):  # it was spoiled, and begun anew
        await fetcher.cannot_read(2, BrokenDownloadError("the line is down", came=8, missing=1))
    with pytest.raises(StoreError, match="no version could be read: nobody answers"):
        await fetcher.cannot_read(3, StoreError("nobody answers"))


async def test_each_part_of_a_version_that_is_being_fetched_is_progress(
    config: Config, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, parts = a_run(config, tiny_model, f"store.cache={tmp_path / 'cache'}", f"store.part_bytes={2**16}")
    heartbeat, said = parts.status.heartbeat, []
    monkeypatch.setattr(heartbeat, "progress", lambda: said.append(heartbeat.status["state"]))
    syncer = Syncer(parts, configured_engine(run.config))
    await syncer.serve(0)
    files = run.store.manifest(0).files
    assert len(said) == len(files) + sum(-(-file.size // 2**16) for file in files) > len(files) + 1
    assert set(said) == {"fetching version 0"}
