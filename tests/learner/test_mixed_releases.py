"""Rollout servers of two releases in one run, as while it is upgraded."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from shared.codec import SCHEMA, encode_group
from shared.stream import Appended
from tests.learner.world import World

pytestmark = pytest.mark.system


def of_release(major: int, minor: int, payload: bytes) -> bytes:
    """The same group as another release writes it: with fields that this one has never heard of."""
    frame: dict[str, Any] = msgpack.unpackb(payload, strict_map_key=False)
    for item in frame["trajectories"]:
        item["something_new"] = [1, 2, 3]
    changed: bytes = msgpack.packb({**frame, "schema": [major, minor], "something_new": {"a": 1}})
    return changed


def test_groups_of_this_release_and_of_the_next_minor_one_are_trained_on_in_one_batch(world: World) -> None:
    learner = world.learner()
    world.control.beat("rollout:new", {"kind": "rollout", "state": "a new word", "something_new": [1]}, 30)
    old = world.append(2)
    new = world.lease(2)
    for index in new:
        payload = of_release(SCHEMA[0], SCHEMA[1] + 1, encode_group(world.group(index)))
        assert world.put_bytes(index, payload) is Appended.STORED
    assert learner.iterate()
    assert world.applied == dict.fromkeys(old + new, 1)
    assert (world.drops, world.backlog.dead_letters) == ({}, 0)


def test_groups_of_a_later_major_release_are_kept_until_the_learner_can_read_them(world: World) -> None:
    learner = world.learner()
    [index] = world.lease(1)
    payload = of_release(SCHEMA[0] + 1, 0, encode_group(world.group(index)))
    assert world.put_bytes(index, payload) is Appended.STORED
    others = world.append(4)
    while not world.applied:
        assert learner.iterate()
    assert world.applied == dict.fromkeys(others, 1)
    assert world.backlog.dead_letters == 1
