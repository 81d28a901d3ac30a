"""Promise 7: one step, cut into any micro-batches and spread over processes, has one gradient."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from learner.objective.registry import OBJECTIVES, build
from learner.objective.statistics import RatioStatistics, ratio_statistics
from learner.objectives import Objectives
from learner.ranks import Ranks
from shared.types import Group
from tests.learner import stale
from tests.learner.one_of_two_ranks import COMPARED, DTYPES, SHARES, log_ratios, step_of

pytestmark = pytest.mark.system  # two processes besides this one

ROOT = Path(__file__).parents[2]
TOLERANCES = {"float64": 1e-10, "float32": 1e-5}  # of the gradient's norm


@pytest.fixture(scope="module")
def groups(tiny_folder: Path) -> list[Group]:
    return stale.stale_groups(stale.load(tiny_folder))


@pytest.fixture(scope="module")
def two_ranks(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes found that took every step together."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "tests.learner.one_of_two_ranks"]
    processes = [
        subprocess.Popen([*command, str(rank), str(tiny_folder), str(folder)], cwd=ROOT, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=120)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def gradient(folder: Path, dtype: str, groups: list[Group], case: str, micro_batch_tokens: int, pieces: int) -> Tensor:
    policy = stale.load(folder, DTYPES[dtype])
    batch = stale.cut_into(groups, micro_batch_tokens)
    assert len(batch.micro_batches) == pieces
    outcome = stale.take(policy, batch, Objectives(stale.CASES[case]))
    assert not outcome.skipped
    return stale.gradient_of(policy)


def apart(one: Tensor, other: Tensor) -> float:
    """Their distance, in norms of the first."""
    assert one.norm() > 0
    return float((one - other).norm() / one.norm())


def test_the_groups_are_uneven_and_stale(tiny_folder: Path, groups: list[Group]) -> None:
    assert len({t.length for g in groups for t in g.trajectories}) > 4
    outcome = stale.take(stale.load(tiny_folder), stale.cut_into(groups, stale.IN_THREE), Objectives(build("p3o")))
    assert 0.3 < outcome.statistics.token_ess.item() < 0.9


def test_every_objective_is_tried() -> None:
    assert {objective.name for objective in stale.CASES.values()} == set(OBJECTIVES)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", stale.CASES)
def test_one_gradient_for_any_micro_batches_and_ranks(
    tiny_folder: Path, groups: list[Group], two_ranks: list[dict[str, Any]], case: str, dtype: str
) -> None:
    whole = gradient(tiny_folder, dtype, groups, case, stale.ALL_IN_ONE, pieces=1)
    found = {
        "3 micro-batches": gradient(tiny_folder, dtype, groups, case, stale.IN_THREE, pieces=3),
        "each alone": gradient(tiny_folder, dtype, groups, case, stale.EACH_ALONE, pieces=16),
        **{f"2 ranks, {share}": two_ranks[0]["gradients"][dtype, share, case] for share in SHARES},
    }
    distances = {cut: apart(whole, other) for cut, other in found.items()}
    assert max(distances.values()) < TOLERANCES[dtype], distances


def test_both_ranks_hold_the_same_gradient(two_ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["gradients"] for rank in two_ranks)
    assert len(first) == len(DTYPES) * len(SHARES) * len(stale.CASES)
    assert [key for key in first if not torch.equal(first[key], second[key])] == []


def test_the_ess_of_a_micro_batch_is_the_exception_that_it_says_to_be(tiny_folder: Path, groups: list[Group]) -> None:
    policy = stale.load(tiny_folder, torch.float64)
    gradients = []
    for tokens in (stale.ALL_IN_ONE, stale.IN_THREE):
        stale.take(policy, stale.cut_into(groups, tokens), Objectives(build("p3o", {"ess_scope": "micro_batch"})))
        gradients.append(stale.gradient_of(policy))
    assert apart(*gradients) > 1e-3
    whole = gradient(tiny_folder, "float64", groups, "p3o", stale.ALL_IN_ONE, pieces=1)
    assert apart(whole, gradients[0]) < TOLERANCES["float64"], "in one piece it is the step's"


def test_shadows_are_compared_over_all_ranks(
    tiny_folder: Path, groups: list[Group], two_ranks: list[dict[str, Any]]
) -> None:
    objectives = Objectives(build("p3o"), tuple(stale.CASES.values()))
    policy = stale.load(tiny_folder, torch.float64)
    alone = stale.take(policy, stale.cut_into(groups, stale.ALL_IN_ONE), objectives, config=COMPARED)
    expected = [shadow.cosine for shadow in alone.shadows]
    for rank in two_ranks:
        assert rank["cosines"] == pytest.approx(expected, abs=1e-10)


def test_gather_puts_ranks_in_order_and_numbers_their_completions_and_groups_on(
    two_ranks: list[dict[str, Any]],
) -> None:
    for rank, found in enumerate(two_ranks):
        whole = found["gathered"]
        assert whole["mine"] == [(0, 3), (3, 8)][rank]
        assert whole["policy_logprobs"].tolist() == [0, 1, 2, 10, 11, 12, 13, 14]
        assert whole["behavior_logprobs"].tolist() == [0.5, 1.5, 2.5, 10.5, 11.5, 12.5, 13.5, 14.5]
        assert whole["advantages"].tolist() == [0, -1, -2, -10, -11, -12, -13, -14]
        assert whole["sequence_of"].tolist() == [1, 1, 0, 4, 4, 2, 2, 2]
        assert whole["group_of"].tolist() == [0, 0, 1, 1, 2]
        assert whole["rewards"].tolist() == [0, 1, 10, 11, 12]
        assert whole["micro_batch_of"].tolist() == [0, 0, 1, 0, 0, 1, 1, 1], "the first of every rank are one"
        assert whole["expert"].tolist() == [True, False, False, False, True, False, False, False]
        assert whole["proximal_logprobs"] is None


def test_every_field_keeps_its_dtype_over_ranks(two_ranks: list[dict[str, Any]]) -> None:
    for found in two_ranks:
        for name, value in vars(step_of(0)).items():
            assert value is None or found["gathered"][name].dtype == value.dtype, name


def test_statistics_merged_over_ranks_are_those_of_all_tokens(two_ranks: list[dict[str, Any]]) -> None:
    first, second = step_of(0), step_of(1)
    sequence_of = torch.cat([first.sequence_of, second.sequence_of + first.sequences])
    d = torch.cat([log_ratios(0), log_ratios(1)])
    whole = ratio_statistics(d, sequence_of, first.sequences + second.sequences)
    expected = vars(whole.summary())
    assert 0 < expected["token_ess"] < 0.9
    for found in two_ranks:
        merged = vars(RatioStatistics.unpack(found["statistics"]).summary())
        assert merged == pytest.approx(expected, rel=1e-12, nan_ok=True)


def test_one_process_alone_has_the_whole_step() -> None:
    step = step_of(0)
    whole, mine = Ranks().gather(step)
    assert whole is step
    assert (mine.start, mine.stop) == (0, 3)


def test_ranks_skip_a_step_together_and_move_together(two_ranks: list[dict[str, Any]]) -> None:
    for found in two_ranks:
        reason, unmoved, _ = found["skipped"]["broken"]
        assert "non-finite ESS" in reason
        assert unmoved
        reason, unmoved, _ = found["skipped"]["good"]
        assert not reason
        assert not unmoved
    first, second = (found["skipped"]["good"][2] for found in two_ranks)
    assert torch.equal(first, second)
