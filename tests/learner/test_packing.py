"""Packing: every trajectory once, within the budget; attention within each of them, whatever stands beside it."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

import learner.attention
from learner.attention import attend, varlen
from learner.packing import PLACES, Packed, Size, pack, packed, place, spread
from shared.errors import ConfigError
from tests.learner.test_head import Largest

SIZES = st.lists(st.builds(Size, st.integers(0, 4), st.just(6), st.integers(0, 40)), min_size=1, max_size=40)


def tokens_of(sizes: list[Size], members: list[int]) -> int:
    """What these take together."""
    return sum({sizes[i].shared: sizes[i].prompt for i in members}.values()) + sum(sizes[i].own for i in members)


@given(SIZES, st.integers(1, 200))
def test_packs_hold_each_trajectory_once_within_the_budget(sizes: list[Size], budget: int) -> None:
    packs = pack(sizes, budget)
    assert sorted(itertools.chain(*packs)) == list(range(len(sizes)))
    for members in packs:
        assert tokens_of(sizes, members) <= budget or len(members) == 1
        assert sum(sizes[i].tokens for i in members) <= PLACES * budget or len(members) == 1
    assert [tokens_of(sizes, m) for m in packs] == [
        max(one.own_at + one.own for one in place([sizes[i] for i in m])) or 6 for m in packs
    ]


def test_a_long_prompt_that_many_share_is_not_gathered_for_all_of_them_at_once() -> None:
    packs = pack([Size("long", 8192, 100)] * 64, 16_384)
    assert [len(members) for members in packs] == [PLACES * 16_384 // 8292] * 9 + [1]


def test_skewed_lengths_fill_nearly_every_pack() -> None:
    lengths = np.random.default_rng(0).lognormal(6.0, 0.8, 400).clip(16, 4096).astype(int).tolist()
    sizes = [Size(i, 0, length) for i, length in enumerate(lengths)]
    packs = pack(sizes, 4096)
    assert len(packs) == -(-sum(lengths) // 4096), "no packing has fewer"


def test_a_pack_keeps_completions_of_one_prompt_together_where_that_costs_less() -> None:
    sizes = [Size(group, 50, 10) for group in (0, 1) for _ in range(4)]
    assert sorted(map(sorted, pack(sizes, 90))) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def ids(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 100, n, dtype=np.int32)


def row_of(lengths: list[tuple[int, int, int]]) -> Packed:
    """(prompt number, its tokens, own tokens) each."""
    return packed([(g, ids(p, g), ids(own, 100 + i)) for i, (g, p, own) in enumerate(lengths)])


ROWS = {
    "one": [(0, 3, 5)],
    "a shared prompt": [(0, 3, 5), (0, 3, 9), (1, 4, 1), (0, 3, 0)],
    "uneven": [(0, 2, 90), (1, 3, 40), (1, 3, 37), (2, 1, 3)],
    "without prompts": [(0, 0, 4), (1, 0, 40)],
}


@pytest.mark.parametrize("lengths", ROWS.values(), ids=ROWS)
def test_a_row_holds_every_trajectory_and_each_prompt_once(lengths: list[tuple[int, int, int]]) -> None:
    row = row_of(lengths)
    for i, ((g, p, own), one) in enumerate(zip(lengths, row.placed, strict=True)):
        assert row.ids[one.whole()].tolist() == [*ids(p, g), *ids(own, 100 + i)]
        assert row.positions[one.whole()].tolist() == list(range(p + own))
    assert len(row.ids) == sum({g: p for g, p, _ in lengths}.values()) + sum(own for _, _, own in lengths)


@pytest.mark.parametrize("slack", [0, 16, 1000])
@pytest.mark.parametrize("lengths", ROWS.values(), ids=ROWS)
def test_attention_and_its_gradient_are_those_of_each_trajectory_by_itself(
    lengths: list[tuple[int, int, int]], slack: int
) -> None:
    row = row_of(lengths)
    torch.manual_seed(0)
    states = [torch.randn(1, heads, len(row.ids), 8, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2)]
    weight = torch.randn(1, len(row.ids), 4, 8, dtype=torch.float64)
    q, k, v = states
    found, _ = attend(None, q, k, v, None, scaling=0.3, spread=spread(row.placed, slack))
    expected = torch.zeros_like(found)
    for one in row.placed:
        q, k, v = (s[:, :, one.whole()] for s in states)
        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        alone = scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3).transpose(1, 2)
        expected = expected.index_copy(1, torch.from_numpy(one.whole()), alone)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad((weight * output).sum(), states) for output in (found, expected)]
    for one_gradient, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one_gradient, other, rtol=1e-11, atol=1e-12)


def test_attention_has_the_precision_of_matrix_products(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def noted(device: torch.device, dtype: torch.dtype) -> bool:
        asked.append(dtype)
        return varlen(device, dtype)

    monkeypatch.setattr(learner.attention, "varlen", noted)
    row = row_of(ROWS["uneven"])
    states = [torch.randn(1, heads, len(row.ids), 8, requires_grad=True) for heads in (4, 2, 2)]
    query, key, value = states
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = attend(None, query, key, value.bfloat16(), None, spread=row.spread)
    assert [*asked, found.dtype] == [torch.bfloat16] * 2, "norms and rotary positions leave float32"
    assert {t.dtype for t in torch.autograd.grad(found.float().sum(), states)} == {torch.float32}


class Sums(TorchDispatchMode):
    """What index_add_ adds to: CUDA rounds each addition to its precision, a CPU the last one only."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtypes: list[torch.dtype] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.index_add_.default:
            self.dtypes.append(args[0].dtype)
        return func(*args, **kwargs or {})


def test_a_shared_prompt_s_gradient_is_summed_in_float32() -> None:
    row = row_of([(0, 1, 1)] * 1022)  # each second token takes half of its value from the prompt
    states = torch.zeros(1, 1, len(row.ids), 8, dtype=torch.bfloat16)
    value = states.clone().requires_grad_()
    found, _ = attend(None, states, states, value, None, spread=row.spread)
    with Sums() as seen:
        [gradient] = torch.autograd.grad(found.sum(), value)
    assert gradient.dtype == torch.bfloat16
    assert gradient[0, 0, 0].tolist() == [1 + 1022 / 2] * 8
    assert seen.dtypes == [torch.float32]


def test_a_sliding_window_looks_back_only_so_far() -> None:
    row = row_of(ROWS["uneven"])
    states = [torch.randn(1, 2, len(row.ids), 8, dtype=torch.float64) for _ in range(3)]
    query, key, value = states
    found, _ = attend(None, query, key, value, None, sliding_window=4, spread=row.spread)
    for one in row.placed:
        q, k, v = (s[:, :, one.whole()] for s in states)
        apart = torch.arange(one.length)[:, None] - torch.arange(one.length)
        alone = scaled_dot_product_attention(q, k, v, (apart >= 0) & (apart < 4)).transpose(1, 2)
        torch.testing.assert_close(found[:, one.whole()], alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("given", [{}, {"spread": spread(row_of(ROWS["one"]).placed), "softcap": 30.0}])
def test_attention_that_is_another_is_refused(given: dict[str, object]) -> None:
    states = [torch.randn(1, 2, 8, 8) for _ in range(3)]
    with pytest.raises(ConfigError, match="cannot be trained on packed trajectories: it"):
        attend(None, states[0], states[1], states[2], None, **given)  # type: ignore[arg-type]


def test_a_long_trajectory_holds_no_matrix_of_scores() -> None:
    row = row_of([(0, 4, 2044)])
    states = [torch.randn(1, heads, len(row.ids), 8, requires_grad=True) for heads in (4, 2, 2)]
    with Largest() as seen:  # type: ignore[no-untyped-call]
        found, _ = attend(None, states[0], states[1], states[2], None, spread=row.spread)
        found.sum().backward()
    assert seen.elements == 4 * 2048 * 8
