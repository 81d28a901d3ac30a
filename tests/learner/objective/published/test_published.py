"""Every objective against numbers derived from its paper by hand or in plain numpy, never by our code."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch

from learner.objective.core import Step
from learner.objective.registry import OBJECTIVES, build
from tests.learner.objective.published import numbers_clipped, numbers_p3o, numbers_weighted
from tests.learner.objective.published.entries import Batch, Entry, Numbers

ENTRIES = [*numbers_p3o.NUMBERS, *numbers_clipped.NUMBERS, *numbers_weighted.NUMBERS]

PUBLISHED = {
    *("p3o", "p4o", "reinforce", "grpo", "dapo", "decoupled_ppo", "truncated_is", "cispo", "gspo", "topr", "sapo"),
    *("minpro", "bapo", "m2po", "vcpo", "opmd", "asymre", "kimi_pmd", "minirl", "chord", "remix"),
}


def step_of(batch: Batch) -> Step:
    def log(probabilities: Numbers | None) -> torch.Tensor | None:
        return None if probabilities is None else torch.from_numpy(np.log(probabilities))

    return Step(
        policy_logprobs=torch.from_numpy(np.log(batch.policy)),
        behavior_logprobs=torch.from_numpy(np.log(batch.behavior)),
        advantages=torch.from_numpy(batch.advantages),
        sequence_of=torch.tensor(batch.completion),
        group_of=torch.tensor(batch.group),
        rewards=torch.from_numpy(batch.rewards),
        proximal_logprobs=log(batch.proximal),
        preceding_logprobs=log(batch.preceding),
        ref_logprobs=log(batch.ref),
        expert=None if batch.expert is None else torch.tensor(batch.expert),
    )


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"{entry.name}{dict(entry.knobs) or ''}")
def test_value_and_slope_of_every_token_are_the_papers(entry: Entry) -> None:
    token_loss = build(entry.name, entry.knobs)(step_of(entry.batch))
    np.testing.assert_allclose(token_loss.value, entry.value, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(token_loss.slope, entry.slope, rtol=1e-12, atol=1e-14)
    assert float(token_loss.step_factor) == pytest.approx(entry.step_factor, rel=1e-12)


def test_every_objective_has_its_numbers_and_they_say_where_the_equation_stands() -> None:
    """Of the field's own; a new one may bring its numbers in its own test file."""
    assert {entry.name for entry in ENTRIES} == PUBLISHED
    assert set(OBJECTIVES) >= PUBLISHED
    assert all(entry.source for entry in ENTRIES)


def test_the_derivations_import_nothing_of_ours() -> None:
    """numpy, the standard library's small change, and the batches themselves."""
    allowed = {"__future__", "collections.abc", "dataclasses", "numpy", "numpy.typing"}
    files = [*Path(__file__).parent.glob("numbers_*.py"), Path(__file__).with_name("entries.py")]
    assert len(files) >= 4
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                assert {name.name for name in node.names} <= allowed, file.name
            if isinstance(node, ast.ImportFrom):
                assert node.module in allowed | {"tests.learner.objective.published.entries"}, file.name
