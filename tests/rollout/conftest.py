"""A tiny model for the tests of the rollout server."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rollout.models import save_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("tiny-model"))
