"""Log-probs without logits: values and gradients of the whole softmax, in pieces of any size, and never all of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import learner.head
from learner.head import TokenOutputs, _add_product, _logits, token_outputs

N, D, V = 23, 6, 31


def inputs(seed: int = 0, dtype: torch.dtype = torch.float64, bias: bool = True) -> dict[str, Any]:
    torch.manual_seed(seed)
    leaf = {"hidden": torch.randn(N, D), "weight": torch.randn(V, D), "bias": torch.randn(V) if bias else None}
    return {
        **{name: t.to(dtype).requires_grad_() if t is not None else None for name, t in leaf.items()},
        "tokens": torch.randint(V, (N,)),
        "temperature": 0.5 + torch.rand(N),
    }


def whole(given: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies from all logits at once."""
    logits = torch.nn.functional.linear(given["hidden"], given["weight"], given["bias"]) / given["temperature"][:, None]
    log_p = torch.log_softmax(logits, -1)
    return log_p.gather(1, given["tokens"][:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


def gradients(loss: Tensor, given: dict[str, Any]) -> list[Tensor]:
    leaves = [given[name] for name in ("hidden", "weight", "bias") if given[name] is not None]
    return list(torch.autograd.grad(loss, leaves))


@pytest.mark.parametrize("piece", [(512, 2048), (5, 7), (1, 1)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("entropy", [False, True])
def test_values_and_gradients_are_those_of_the_whole_softmax(
    monkeypatch: pytest.MonkeyPatch, piece: tuple[int, int], bias: bool, entropy: bool
) -> None:
    monkeypatch.setitem(learner.head.PIECE, "cpu", piece)
    given, weights = inputs(bias=bias), torch.linspace(-1, 2, N, dtype=torch.float64)
    found = token_outputs(**given, entropy=entropy)
    logprobs, entropies = whole(given)
    torch.testing.assert_close(found.logprobs, logprobs, rtol=1e-12, atol=1e-12)
    loss, expected = (weights * found.logprobs).sum(), (weights * logprobs).sum()
    if entropy:
        assert found.entropy is not None
        torch.testing.assert_close(found.entropy, entropies, rtol=1e-12, atol=1e-12)
        loss, expected = loss + found.entropy.square().sum(), expected + entropies.square().sum()
    else:
        assert found.entropy is None
    for one, other in zip(gradients(loss, given), gradients(expected, given), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_an_entropy_that_the_loss_does_not_have_changes_no_bit() -> None:
    given = inputs(dtype=torch.float32)
    without, beside = token_outputs(**given), token_outputs(**given, entropy=True)
    assert torch.equal(without.logprobs, beside.logprobs)
    one, other = (gradients(outputs.logprobs.sum(), given) for outputs in (without, beside))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_what_is_known_is_not_computed_again_but_has_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    given = inputs(dtype=torch.float32)
    first = token_outputs(**given, entropy=True)
    assert first.entropy is not None
    expected = gradients((first.logprobs + first.entropy).sum(), given)
    monkeypatch.setattr(learner.head, "_first", None)
    again = token_outputs(**given, known=first.detach())
    assert torch.equal(again.logprobs, first.logprobs)
    assert again.entropy is not None
    for one, other in zip(gradients((again.logprobs + again.entropy).sum(), given), expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("large", [1e4, -1e4])
def test_logits_of_any_size_stay_finite(large: float) -> None:
    given = inputs(dtype=torch.float32, bias=False)
    given["hidden"] = (given["hidden"].detach() * large).requires_grad_()
    found = token_outputs(**given, entropy=True)
    assert found.entropy is not None
    assert found.logprobs.max() <= 0
    assert all(t.isfinite().all() for t in gradients((found.logprobs + found.entropy).sum(), given))


def test_sums_are_wider_than_the_matrix_products() -> None:
    given = inputs(dtype=torch.float32, bias=False)
    found = token_outputs(**given, entropy=True, dtype=torch.bfloat16)
    exact = token_outputs(**given, entropy=True)
    assert {t.dtype for t in found if t is not None} == {torch.float32}
    assert (found.logprobs - exact.logprobs).abs().max() < 0.1
    one, other = (gradients(outputs.logprobs.sum(), given)[1] for outputs in (found, exact))
    assert one.dtype == torch.float32
    assert 0 < (one - other).norm() < 0.02 * other.norm()


class Products(TorchDispatchMode):
    """The precision that every matrix product comes in."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtypes: list[torch.dtype] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        if func.overloadpacket is torch.ops.aten.mm:
            self.dtypes.append(result.dtype)
        return result


def test_cuda_rounds_neither_logits_nor_their_gradients() -> None:
    with FakeTensorMode(), Products() as seen:  # shapes and precisions of CUDA, wherever this runs
        narrow, weight = (torch.empty(n, D, dtype=torch.bfloat16, device="cuda") for n in (N, V))
        z = _logits(narrow, weight, None, torch.empty(N, device="cuda"), torch.float32)
        _add_product(torch.empty(N, D, device="cuda"), z.bfloat16(), weight)
    assert seen.dtypes == [torch.float32] * 2


class Largest(TorchDispatchMode):
    """The elements of the largest tensor that anything returns."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        for tensor in result if isinstance(result, tuple) else (result,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


def test_no_pass_holds_the_logits_of_all_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(learner.head.PIECE, "cpu", (5, 7))
    given = inputs(bias=False)
    with Largest() as mine:  # type: ignore[no-untyped-call]
        outputs: TokenOutputs = token_outputs(**given, entropy=True)
        assert outputs.entropy is not None
        gradients((outputs.logprobs + outputs.entropy).sum(), given)
    with Largest() as naive:  # type: ignore[no-untyped-call]
        gradients(sum(whole(given)).sum(), given)  # type: ignore[union-attr]
    assert naive.elements == N * V
    assert mine.elements == V * D, "the weight's own gradient"
