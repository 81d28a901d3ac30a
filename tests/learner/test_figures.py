"""The pictures: every objective has a panel, and a file is written without a display."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from learner.figures import HIGHEST, columns, draw_estimators, draw_weights
from learner.objective.registry import OBJECTIVES, build
from tests.learner.objective.steps import random_step

pytestmark = pytest.mark.system  # draws whole pages


def test_the_estimators_are_drawn(tmp_path: Path) -> None:
    draw_estimators(tmp_path / "kl.png")
    assert Image.open(tmp_path / "kl.png").size[0] > 1000


def test_every_objective_has_a_panel(tmp_path: Path) -> None:
    step = random_step(0)
    full = random_step(
        0, expert=torch.zeros(step.tokens, dtype=torch.bool), micro_batch_of=torch.zeros_like(step.sequence_of)
    )
    few = [build("p3o"), build("grpo")]
    draw_weights(tmp_path / "few.png", [full], few, "two")
    draw_weights(tmp_path / "all.png", [full, full], [build(name) for name in OBJECTIVES], "all")
    assert Image.open(tmp_path / "all.png").size[1] > 2 * Image.open(tmp_path / "few.png").size[1]


def test_the_points_are_the_objectives_weights() -> None:
    step = random_step(0, spread=2.0)
    ratio, weight, advantages, cut = columns([step, step], build("truncated_is", {"cap": 2.0}))
    torch.testing.assert_close(ratio, torch.cat([step.log_ratio.exp()] * 2))
    torch.testing.assert_close(weight, ratio.clamp(max=2.0))
    torch.testing.assert_close(advantages, torch.cat([step.advantages] * 2))
    assert cut.tolist() == (ratio > 2.0).tolist()
    assert columns([step], build("grpo"))[1].max() <= HIGHEST
