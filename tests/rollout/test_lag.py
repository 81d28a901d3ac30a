"""The dial on a living server: real Redis, real store, transformers' own generation."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from rollout.engines.transformers import TransformersEngine
from rollout.lag import Dial
from shared.config import Config
from shared.config.transfer import TransferConfig
from shared.lag import Asked, Moment
from shared.types import Group
from tests.rollout.run import Run, parts_of, serving, small, until
from tests.rollout.worlds import Hanging

pytestmark = [pytest.mark.asyncio, pytest.mark.system]


def published(config: Config, model: Path, versions: int, *overrides: str) -> Run:
    """A run with so many versions, whose weights differ."""
    run = Run(small(config, model, "rollout.max_lag=16", *overrides))
    for _ in range(versions):
        run.publish()
        run.step()
    return run


def told(groups: list[Group]) -> list[tuple[int, str, int]]:
    """(lag, arm, the version that drew it) of each group; a group of two versions is an error."""
    found: list[tuple[int, str, int]] = []
    for group in groups:
        [version] = {span.policy_version for t in group.trajectories for span in t.versions}
        found.append((group.lag, group.arm, version))
    return found


def beat_of(run: Run) -> dict[str, Any]:
    return run.control.status_of("rollout:r0") or {}


async def test_the_next_group_is_drawn_at_the_lag_that_is_asked_for_up_and_down(
    config: Config, tiny_model: Path
) -> None:
    run = published(config, tiny_model, 6, "admission.max_staleness=0")
    async with serving(parts_of(run.config)) as server:
        applied: list[int] = []
        for wish, lag, version in ((b"", 0, 5), (b"3", 3, 2), (b"16", 16, 0), (b"1", 1, 4), (b"", 0, 5)):
            run.control.wish_lag(wish, "ann")
            run.reader.release(applied)
            await until(lambda: run.unapplied() == 4, f"groups at lag {lag}", server)
            newest = run.groups()[-4:]
            applied = [group.prompt_index for group in newest]
            assert told(newest) == [(lag, "", version)] * 4
        await until(lambda: beat_of(run).get("lag_served") == 0, "the heartbeat", server)
    assert run.control.events() == []


async def test_groups_in_flight_are_finished_by_the_weights_that_began_them(config: Config, tiny_model: Path) -> None:
    run = published(config, tiny_model, 4, "environment.path=tests.rollout.worlds:Hanging")
    Hanging.release.clear()
    parts = parts_of(run.config)
    async with serving(parts) as server:
        await until(lambda: run.leased() == 4, "four groups in flight", server)
        run.control.wish_lag(b"2", "ann")
        waiting = "finishing groups, to serve at lag 2"
        await until(lambda: run.state_of() == waiting, "the dial to be heard", server)
        assert (beat_of(run)["policy_version"], run.leased()) == (3, 4), "nothing new is begun either"
        assert "stage_s" in parts.stages, "the other version is at hand before the server stands still for it"
        Hanging.release.set()
        await until(lambda: run.unapplied() == 8, "all credit to be used", server)
    assert told(run.groups()) == [(0, "", 3)] * 4 + [(2, "", 1)] * 4


async def test_dwells_of_groups_alternate_between_the_arms(config: Config, tiny_model: Path) -> None:
    spec = "{lag: 3, dwell: 4 groups, control_share: .5}"
    run = published(
        config, tiny_model, 5, f"rollout.lag={spec}", "admission.max_staleness=3", "rollout.groups_in_flight=2"
    )
    async with serving(parts_of(run.config)) as server:
        await until(lambda: run.unapplied() == 16, "all credit to be used", server)
    groups = sorted(told(run.groups()))
    assert set(groups) == {(0, "control", 4), (3, "", 1)}
    assert abs(groups.count((0, "control", 4)) - 8) <= 2, "a dwell may be longer by what was in flight"


async def test_a_server_that_comes_back_follows_what_was_asked_for_before(config: Config, tiny_model: Path) -> None:
    run = published(config, tiny_model, 5)
    run.control.wish_lag(b'{"lag": 1, "servers": {"r0": 3}}', "ann")
    async with serving(parts_of(run.config)) as server:
        await until(lambda: run.unapplied() == 8, "groups", server)
    assert told(run.groups()) == [(3, "", 1)] * 8


async def test_the_newest_version_is_served_between_groups_of_an_unchanged_lag_without_waiting(
    config: Config, tiny_model: Path
) -> None:
    run = published(config, tiny_model, 2, "rollout.lag=1", "environment.path=tests.rollout.worlds:Hanging")
    Hanging.release.clear()
    async with serving(parts_of(run.config)) as server:
        await until(lambda: run.leased() == 4, "four groups in flight", server)
        run.publish()
        await until(lambda: beat_of(run).get("policy_version") == 1, "the next version, in flight", server)
        Hanging.release.set()
        await until(lambda: run.unapplied() == 8, "groups", server)
    assert {lag for lag, _, _ in told(run.groups())} == {1}


async def test_groups_go_on_while_a_slow_version_is_loaded_although_the_lag_depends_on_versions(
    config: Config, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real engine, whose load takes its time: what max_staleness allows is drawn meanwhile, at the dwell's lag."""
    spec = "{lag: 1, dwell: 9 versions, control_share: .01}"
    run = published(config, tiny_model, 2, f"rollout.lag={spec}", "admission.max_staleness=3")
    loading, go_on = asyncio.Event(), asyncio.Event()
    truly = TransformersEngine.load

    async def slowly(self: TransformersEngine, folder: Path, policy_version: int) -> Any:
        loading.set()
        await go_on.wait()
        return await truly(self, folder, policy_version)

    monkeypatch.setattr(TransformersEngine, "load", slowly)
    async with serving(parts_of(run.config)) as server:
        await until(lambda: run.unapplied() == 16, "the first groups", server)
        run.control.set_paused(True)
        run.publish(applied=list(range(16)))
        await asyncio.wait_for(loading.wait(), 60)
        run.publish()  # which nobody looks at before the load is done
        run.control.set_paused(False)
        await until(lambda: run.leased() == 4, "groups of a version before", server)
        go_on.set()
        await until(lambda: run.unapplied() > 4, "the others", server)
    assert {(lag, arm) for lag, arm, _ in told(run.groups())} == {(1, "")}


async def test_groups_are_drawn_while_the_first_evaluation_is_being_answered(config: Config, tiny_model: Path) -> None:
    run = published(config, tiny_model, 1, "environment.path=tests.rollout.worlds:Hanging")
    Hanging.release.clear()
    run.control.request_evaluation(0)
    async with serving(parts_of(run.config)) as server:
        await until(lambda: run.state_of() == "evaluating version 0", "the evaluation", server)
        await until(lambda: run.leased() == 4, "groups", server)
        Hanging.release.set()
        await until(lambda: run.unapplied() == 8, "all of them", server)


async def test_a_wish_that_cannot_be_read_leaves_the_configured_lag(config: Config, tiny_model: Path) -> None:
    dial = Dial(await asyncio.to_thread(parts_of, small(config, tiny_model, "rollout.lag=4")))
    assert dial.turn(b"8", Moment(9, 9, 0)) == Asked(8, wish=b"8")
    assert dial.turn(b"{", Moment(9, 9, 0)) == dial.asked == Asked(4, wish=b"{")
    assert dial.turn(b"", Moment(9, 9, 0)) == Asked(4, wish=b"")


async def test_a_wish_from_before_the_transfer_is_not_followed_over_the_wire(config: Config, tiny_model: Path) -> None:
    """The learner holds no older versions there; the run may have been resumed with another transfer."""
    files = small(config, tiny_model)
    wire = files.model_copy(update={"store": files.store.model_copy(update={"transfer": TransferConfig(kind="gloo")})})
    for given, lag in ((files, 8), (wire, 0)):
        dial = Dial(await asyncio.to_thread(parts_of, given))
        assert dial.turn(b"8", Moment(9, 9, 0)) == Asked(lag, wish=b"8")
        assert dial.turn(b"0", Moment(9, 9, 0)) == Asked(0, wish=b"0")
