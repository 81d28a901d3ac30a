"""Causal attention within each trajectory of a packed row, for every model that takes its attention from transformers.

    q, k, v of N tokens --take--> places of the trajectories --attention, block by block--> --take--> N tokens

On CUDA in half precision the blocks are one call of torch's variable-length attention; everywhere else, one call of
scaled_dot_product_attention for all trajectories of like lengths. Neither holds a matrix of scores.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from learner.packing import Spread
from shared.errors import ConfigError

NAME = "trustbatch_packed"
_UNKNOWN = ("softcap", "s_aux", "position_bias")  # what some models add to the scores


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    spread: Spread | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in every layer: [1, heads, N, d] each; returns [1, N, heads, d].

    Raises:
        ConfigError: the model's attention is not this one.

    """
    unknown = [name for name in _UNKNOWN if others.get(name) is not None]
    if unknown or spread is None or attention_mask is not None:
        why = f"it needs {unknown[0]}" if unknown else "it does not hand on where trajectories begin"
        raise ConfigError(f"model.path: {type(module).__name__} cannot be trained on packed trajectories: {why}")
    q, k, v = (_take(_narrowed(states[0]).transpose(0, 1), spread) for states in (query, key, value))  # [R, heads, d]
    if varlen(q.device, q.dtype):
        outputs = _varlen(q, k, v, spread, scaling, sliding_window)
    else:
        ends = [count * length for count, length in spread.blocks]
        pieces = zip(spread.blocks, q.split(ends), k.split(ends), v.split(ends), strict=True)
        blocks = [_block(block, qb, kb, vb, scaling, sliding_window) for block, qb, kb, vb in pieces]
        outputs = torch.cat(blocks) if len(blocks) > 1 else blocks[0]
    return _untake(outputs, spread)[None], None


def varlen(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether trajectories of any lengths go through one kernel."""
    return device.type == "cuda" and dtype in (torch.float16, torch.bfloat16)


def _narrowed(states: Tensor) -> Tensor:
    """In the precision of matrix products, which norms and rotary positions leave."""
    device = states.device.type
    return states.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else states


def _take(states: Tensor, spread: Spread) -> Tensor:
    """[N, ...] -> [R, ...]: every place gets its token's."""
    taken: Tensor = _Take.apply(states, spread)  # type: ignore[no-untyped-call]
    return taken


def _untake(outputs: Tensor, spread: Spread) -> Tensor:
    """[R, ...] -> [N, ...]: every token gets what its first place has."""
    untaken: Tensor = _Untake.apply(outputs, spread)  # type: ignore[no-untyped-call]
    return untaken


def _block(
    shape: tuple[int, int], q: Tensor, k: Tensor, v: Tensor, scaling: float | None, window: int | None
) -> Tensor:
    """So many trajectories of one length: [count * length, heads, d]."""
    length = shape[1]
    q, k, v = (states.unflatten(0, shape).transpose(1, 2) for states in (q, k, v))
    visible = None
    if window is not None and window < length:
        apart = torch.arange(length, device=q.device)
        apart = apart[:, None] - apart
        visible = (apart >= 0) & (apart < window)
    output = scaled_dot_product_attention(
        q, k, v, visible, is_causal=visible is None, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
    )
    return output.transpose(1, 2).flatten(0, 1)


def _varlen(q: Tensor, k: Tensor, v: Tensor, spread: Spread, scaling: float | None, window: int | None) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    lengths = torch.tensor([0, *(length for count, length in spread.blocks for _ in range(count))])
    longest = int(lengths.max())
    ends = lengths.cumsum(0).to(q.device, torch.int32)
    left = -1 if window is None else window - 1
    output = varlen_attn(
        q, k, v, ends, ends, longest, longest,
        scale=scaling, window_size=(left, 0), enable_gqa=q.shape[1] != k.shape[1],
    )  # fmt: skip
    assert isinstance(output, Tensor)
    return output


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, spread: Spread) -> Tensor:
        ctx.spread = spread
        return states.index_select(0, spread.token)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Sums over a token's places in float32 or better; what only fills has no gradient."""
        spread: Spread = ctx.spread
        of_tokens = grad.index_select(0, spread.place)
        if len(spread.again):
            total = of_tokens.to(torch.promote_types(grad.dtype, torch.float32))
            total.index_add_(0, spread.token[spread.again], grad[spread.again].to(total.dtype))
            of_tokens = total.to(grad.dtype)
        return of_tokens, None


class _Untake(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, outputs: Tensor, spread: Spread) -> Tensor:
        ctx.spread, ctx.places = spread, len(outputs)
        return outputs.index_select(0, spread.place)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Back to the first place; nothing to the others."""
        spread: Spread = ctx.spread
        return grad.new_zeros(ctx.places, *grad.shape[1:]).index_copy_(0, spread.place, grad), None


AttentionInterface.register(NAME, attend)
