"""Log-probs of given tokens from hidden states, without ever holding their logits: [n, V] exists in no pass.

    z = hidden / temperature @ weight^T (+ bias / temperature)       in pieces of tokens and of the vocabulary
    normalizer = log sum_v exp z_v    logprob = z_token - normalizer    entropy = normalizer - sum_v p_v z_v

    d logprob / d z_v = [v = token] - p_v        d entropy / d z_v = -p_v (log p_v + entropy)

The backward pass computes the pieces of z again and p from the normalizer, the only thing that is kept of them.
Sums are in float32 or better, whatever precision the factors of matrix products have; a CPU, though, rounds the product
of each piece to that of its factors.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

PIECE = {"cpu": (1024, 2048), "cuda": (4096, 16_384)}  # tokens and vocabulary of a piece


class TokenOutputs(NamedTuple):
    """What the policy says of n tokens."""

    logprobs: Tensor  # [n], nats
    entropy: Tensor | None  # [n], nats, of the distribution that each was drawn from; None if not asked for
    normalizer: Tensor | None = None  # [n], nats; who has it, and the log-probs, need not compute them again

    def detach(self) -> TokenOutputs:
        """Without gradient, and fit for an autograd graph."""
        entropy, normalizer = (part if part is None else part.detach().clone() for part in self[1:])
        return TokenOutputs(self.logprobs.detach().clone(), entropy, normalizer)


def token_outputs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    temperature: Tensor,
    *,
    entropy: bool = False,
    known: TokenOutputs | None = None,
    dtype: torch.dtype | None = None,
) -> TokenOutputs:
    """What an output layer says of tokens, with gradient in hidden, weight and bias.

    Args:
        hidden: [n, d], of the tokens before.
        weight: [V, d].
        bias: [V], or None.
        tokens: [n] int64.
        temperature: [n], above 0.
        entropy: whether to compute it.
        known: what an earlier pass found with the same weights: then this one computes nothing before its backward.
        dtype: of the matrix products; that of the weight if not given.

    """
    wide = torch.promote_types(torch.promote_types(hidden.dtype, weight.dtype), torch.float32)
    scaled = hidden.to(wide) / temperature[:, None].to(wide)
    inverse = temperature.to(wide).reciprocal()
    if known is None:
        with torch.no_grad():
            known = _first(scaled, weight, bias, tokens, inverse, entropy, dtype or weight.dtype)
    assert known.normalizer is not None
    logprobs, entropies = _Outputs.apply(  # type: ignore[no-untyped-call]
        scaled, weight, bias, tokens, inverse, known.logprobs, known.entropy, known.normalizer, dtype or weight.dtype
    )
    return TokenOutputs(logprobs, entropies, known.normalizer)


def _pieces(n: int, vocabulary: int, device: torch.device) -> Iterator[tuple[slice, list[slice]]]:
    """Every piece of the vocabulary with the pieces of the tokens."""
    t, v = PIECE["cuda" if device.type == "cuda" else "cpu"]
    of_tokens = [slice(i, min(i + t, n)) for i in range(0, n, t)]
    for j in range(0, vocabulary, v):
        yield slice(j, min(j + v, vocabulary)), of_tokens


def _product(a: Tensor, b: Tensor, wide: torch.dtype) -> Tensor:
    """A @ b in `wide`."""
    if a.is_cuda and a.dtype in (torch.float16, torch.bfloat16):
        return torch.mm(a, b, out_dtype=torch.float32).to(wide)
    return (a @ b).to(wide)


def _logits(scaled: Tensor, weight: Tensor, bias: Tensor | None, inverse: Tensor, wide: torch.dtype) -> Tensor:
    z = _product(scaled, weight.T, wide)
    return z if bias is None else z.addr_(inverse, bias.to(wide))


def _add_product(to: Tensor, a: Tensor, b: Tensor) -> None:
    """To += a @ b, summed in the precision of `to`."""
    if a.dtype == to.dtype:
        to.addmm_(a, b)
    else:
        to.add_(_product(a, b, to.dtype))


def _first(
    scaled: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    inverse: Tensor,
    entropy: bool,
    dtype: torch.dtype,
) -> TokenOutputs:
    """The pass before: running maximum m, sum of exp(z - m), of (z - m) exp(z - m), and the token's own z."""
    n, wide = len(tokens), scaled.dtype
    m, own = scaled.new_full((n,), -torch.inf), scaled.new_zeros(n)
    total, moment = scaled.new_zeros(n), scaled.new_zeros(n)
    narrow = scaled.to(dtype)
    for vs, of_tokens in _pieces(n, len(weight), scaled.device):
        w, b = weight[vs].to(dtype), bias[vs] if bias is not None else None
        for ts in of_tokens:
            z = _logits(narrow[ts], w, b, inverse[ts], wide)
            inside = tokens[ts] - vs.start
            here = (inside >= 0) & (inside < z.shape[1])
            own[ts] = torch.where(here, z.gather(1, inside.clamp(0, z.shape[1] - 1)[:, None])[:, 0], own[ts])
            most = torch.maximum(m[ts], z.amax(1))
            rise = m[ts] - most  # at most 0; -inf at first
            shrink = rise.exp()
            if entropy:
                raised = torch.where(shrink > 0, rise * total[ts], 0.0)
                e = z.sub_(most[:, None]).exp()
                moment[ts] = shrink * (moment[ts] + raised) + z.mul_(e).sum(1)
            else:
                e = z.sub_(most[:, None]).exp_()
            total[ts] = shrink * total[ts] + e.sum(1)
            m[ts] = most
    log_total = total.log()
    found = log_total - moment / total if entropy else None
    return TokenOutputs(own - m - log_total, found, m + log_total)


class _Outputs(torch.autograd.Function):
    """Known log-probs and entropies, with their gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        scaled: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        inverse: Tensor,
        logprobs: Tensor,
        entropy: Tensor | None,
        normalizer: Tensor,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(scaled, weight, bias, tokens, inverse, entropy, normalizer)
        ctx.dtype = dtype
        ctx.set_materialize_grads(False)
        return logprobs.clone(), entropy.clone() if entropy is not None else None

    @staticmethod
    def backward(ctx: Any, of_logprobs: Tensor | None, of_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        """Piece by piece: d z = of_logprobs ([v = token] - p) - of_entropy p (log p + entropy)."""
        scaled, weight, bias, tokens, inverse, entropy, normalizer = ctx.saved_tensors
        dtype, wide = ctx.dtype, scaled.dtype
        if of_logprobs is None:
            of_logprobs = torch.zeros_like(normalizer)
        # Where nobody asks for the entropy's, d z is p times a number for each token, which the hidden states take up.
        rows = of_logprobs if of_entropy is None else torch.ones_like(of_logprobs)
        narrow, weighed = scaled.to(dtype), (scaled * -rows[:, None]).to(dtype)
        of_scaled = torch.zeros_like(scaled)
        of_weight = torch.zeros_like(weight, dtype=wide)
        of_bias = torch.zeros_like(bias, dtype=wide) if bias is not None else None
        for vs, of_tokens in _pieces(len(tokens), len(weight), scaled.device):
            w, b = weight[vs].to(dtype), bias[vs] if bias is not None else None
            for ts in of_tokens:
                log_p = _logits(narrow[ts], w, b, inverse[ts], wide).sub_(normalizer[ts, None])
                if of_entropy is None:
                    p = log_p.exp_()
                else:
                    p = log_p.exp()
                    slope = (of_logprobs + of_entropy * entropy)[ts, None]
                    p.mul_(log_p.mul_(of_entropy[ts, None]).add_(slope))
                if of_bias is not None:
                    of_bias[vs] -= (rows * inverse)[ts] @ p
                p = p.to(dtype)
                _add_product(of_scaled[ts], p, w)
                _add_product(of_weight[vs], p.T, weighed[ts])
        of_scaled.mul_(-rows[:, None])
        of_scaled.addcmul_(weight[tokens].to(wide), of_logprobs[:, None])
        of_weight.index_add_(0, tokens, scaled * of_logprobs[:, None])
        if of_bias is not None:
            of_bias.index_add_(0, tokens, of_logprobs * inverse)
        return of_scaled, of_weight.to(weight.dtype), of_bias, *[None] * 6
