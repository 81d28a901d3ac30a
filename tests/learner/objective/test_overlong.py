"""The overlong penalty: its three stretches, and where it may not be asked for."""

import pytest
import torch

from learner.objective.advantages import group_advantages
from learner.objective.overlong import overlong_penalty


def test_the_papers_own_numbers() -> None:
    """Maximum 20480, buffer 4096: free up to 16384, then linear to -1."""
    lengths = torch.tensor([0, 16384, 17408, 18432, 20480, 30000])
    assert overlong_penalty(lengths, 20480, 4096).tolist() == [0, 0, -0.25, -0.5, -1, -1]


def test_it_makes_the_longer_of_two_right_answers_the_worse_one() -> None:
    rewards = torch.tensor([1.0, 1.0]) + overlong_penalty(torch.tensor([80, 100]), 100, 20)
    short, long = group_advantages(rewards, torch.tensor([0, 0])).tolist()
    assert long < 0 < short


def test_the_dtype_of_floating_lengths_is_kept() -> None:
    assert overlong_penalty(torch.ones(2, dtype=torch.float64), 4, 2).dtype == torch.float64


@pytest.mark.parametrize("buffer", [0, -1, 11])
def test_a_buffer_that_makes_no_sense_is_refused(buffer: int) -> None:
    with pytest.raises(ValueError, match="buffer must be in"):
        overlong_penalty(torch.tensor([1]), 10, buffer)
