"""Rounding to 8 bits, row by row."""

import torch

from rollout.engines.quantize import is_quantized, to_int8


def test_a_row_has_at_most_255_values_within_half_a_level_of_the_truth() -> None:
    weight = (
        torch.randn(5, 1000, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e-4, 1, 3, 100, 0])[:, None]
    )
    rounded = to_int8(weight)
    assert all(len(row.unique()) <= 255 for row in rounded)
    level = weight.abs().amax(1, keepdim=True) / 127
    assert ((rounded - weight).abs() <= level / 2 * (1 + 1e-5)).all()
    assert torch.equal(to_int8(rounded), rounded), "what is of 8 bits stays"
    assert to_int8(weight.bfloat16()).dtype == torch.bfloat16


def test_only_projections_are_rounded() -> None:
    matrix = torch.zeros(2, 2)
    assert is_quantized("model.layers.0.mlp.down_proj.weight", matrix)
    assert not is_quantized("model.embed_tokens.weight", matrix)
    assert not is_quantized("lm_head.weight", matrix)
    assert not is_quantized("model.layers.0.self_attn.q_proj.bias", torch.zeros(2))
