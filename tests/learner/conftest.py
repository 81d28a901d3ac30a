"""A tiny model for the session, and a run of its own for every test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import shared.stream
from shared.config import Config, load_config
from shared.redis_client import connect
from tests.learner.world import World, save_tiny_model

MakeWorld = Callable[..., World]

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def make_world(config: Config, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeWorld]:
    """make_world("learner.steps=4", ...): a run with small batches on the session's Redis, or on another."""
    monkeypatch.setattr(shared.stream, "BLOCK_S", 0.1)
    worlds: list[World] = []

    def make(*overrides: str, url: str | None = None) -> World:
        small = [
            f"redis.url={url or config.redis.url}",
            f"run.id={config.run.id}",
            f"run.folder={config.run.folder}",
            f"model.path={tiny_folder}",
            "rollout.group_size=4",
            "rollout.engine.kind=vllm",
            "rollout.engine.max_model_len=64",
            "learner.groups_per_batch=4",
            "learner.learning_rate=0.003",
            "learner.checkpoint_every=2",
            "learner.idle_deadline_s=5",
            "evaluation.deadline_s=0.2",
        ]
        resolved = load_config(None, [*small, *overrides], {})
        world = World(resolved, connect(resolved))
        worlds.append(world)
        return world

    yield make
    for world in worlds:
        world.abandon()
        world.client.close()


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    return make_world()
