"""What operators want of servers while a run goes on: to drain, to take groups again, to leave, to ask for less."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from rollout.admit import DISMISSED, Admitter
from rollout.server import RolloutServer
from shared.budgets import Budgets
from shared.config import Config
from shared.control import EvaluationResult, Latest
from shared.lag import Asked
from shared.wishes import Wishes, incarnation
from tests.rollout.run import Run, parts_of, serving, small, until

pytestmark = [pytest.mark.asyncio, pytest.mark.system]


def said(run: Run, server: str = "r0") -> dict[str, object]:
    return run.control.status_of(f"rollout:{server}") or {}


async def test_a_draining_server_ends_what_it_has_and_takes_nothing_until_it_is_wanted_again(
    config: Config, tiny_model: Path
) -> None:
    run = Run(small(config, tiny_model))
    wishes = Wishes(run.client, run.keys)
    assert wishes.drain("r0", "ann", True)
    run.publish()
    async with serving(parts_of(run.config)) as server:
        await until(lambda: run.state_of() == "draining", "the server to say so", server)
        assert (said(run)["draining"], said(run)["in_flight"], run.unapplied(), run.leased()) == (True, 0, 0, 0)
        run.control.request_evaluation(0)
        assert wishes.drain("r0", "ann", False)
        await until(lambda: run.unapplied() == 8, "groups again", server)
        await until(lambda: said(run)["draining"] is False, "the server to say so", server)
        await until(lambda: bool(run.control.evaluations()), "the evaluation that it left alone", server)
    assert isinstance(run.control.evaluations()[0], EvaluationResult)


async def test_groups_in_flight_arrive_although_their_server_drains(config: Config, tiny_model: Path) -> None:
    run = Run(small(config, tiny_model))
    wishes = Wishes(run.client, run.keys)
    run.publish()
    async with serving(parts_of(run.config)) as server:
        await until(lambda: run.leased() > 0 or run.unapplied() > 0, "groups in flight", server)
        wishes.drain("r0", "ann", True)
        await until(lambda: run.state_of() == "draining", "the server to say so", server)
        arrived = run.unapplied()
        assert (run.leased(), arrived > 0, len(run.read())) == (0, True, arrived)
        run.reader.release(range(arrived))
        await until(lambda: said(run)["in_flight"] == 0, "nothing in flight", server)
        assert len(run.read()) == arrived, "no group after the drain"


WAITS: dict[str, tuple[int, Asked | None]] = {  # version served, lag asked for
    "paused by the operator": (0, Asked()),
    "waiting for a version that proves itself": (-1, Asked()),
    "waiting for the weights of another lag": (0, None),
}


@pytest.mark.parametrize("reason", WAITS)
async def test_a_server_drains_and_leaves_whatever_it_waits_for(config: Config, tiny_model: Path, reason: str) -> None:
    run = Run(small(config, tiny_model))
    run.control.announce(run.epoch, Latest(0, -1, 0), 0, [])
    wishes, parts = Wishes(run.client, run.keys), parts_of(run.config)
    served, asked = WAITS[reason]
    run.control.set_paused(reason.startswith("paused"))

    async def generate(index: int, at: Asked) -> None:
        raise AssertionError(f"prompt {index} was given out")

    admitter = Admitter(parts, lambda: served, lambda: asked, generate)
    admits = asyncio.ensure_future(admitter.run())
    await until(lambda: parts.status.heartbeat.status["state"] == reason, "the server to say so", admits)
    wishes.drain("r0", "ann", True)
    await until(lambda: parts.status.heartbeat.status["draining"], "the server to drain", admits)
    assert parts.status.heartbeat.status["state"] == "draining"
    wishes.dismiss("r0", incarnation(parts.status.heartbeat.status), "ann")
    assert await asyncio.wait_for(admits, 60) == DISMISSED
    assert parts.admission.lease(1, 0).reason == "draining", "should the answer be lost, it is asked for again"
    await admitter.stop(0)


async def test_only_the_process_that_is_meant_leaves(config: Config, tiny_model: Path) -> None:
    run = Run(small(config, tiny_model))
    wishes = Wishes(run.client, run.keys)
    run.publish()
    wishes.drain("r0", "ann", True)
    wishes.dismiss("r0", "elsewhere 1", "ann")
    parts = parts_of(run.config)
    server = RolloutServer(parts)
    ends = asyncio.ensure_future(server.run())
    await until(lambda: run.state_of() == "draining", "the server to say so", ends)
    wishes.dismiss("r0", incarnation(said(run)), "ann")
    await asyncio.wait_for(ends, 60)
    assert (server.over, run.control.members(), wishes.draining()) == (DISMISSED, {}, {})


async def test_a_wish_for_less_counts_with_the_next_lease(config: Config, tiny_model: Path) -> None:
    run = Run(small(config, tiny_model))
    run.publish()
    narrow = Budgets(0, int(run.config.admission.max_bytes))
    run.control.wish_admission(narrow.wish(run.config), "ann")
    per_version = run.config.learner.groups_per_publish
    async with serving(parts_of(run.config)) as server:
        await until(lambda: run.state_of() == "waiting for staleness credit", "the server to say so", server)
        assert run.unapplied() == per_version
        run.control.wish_admission(b"", "ann")
        await until(lambda: run.unapplied() == 8, "all credit again", server)
    assert per_version < 8
