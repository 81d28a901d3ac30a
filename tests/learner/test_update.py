"""The norm of an update, from the optimizer's state, is that of the weights' difference."""

import pytest
import torch

from learner import update
from learner.update import update_norm


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("piece", [3, 2**24])
def test_it_is_the_norm_of_the_difference(weight_decay: float, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update, "PIECE", piece)
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((4, 5), (7,), (2,))]
    parameters = [torch.nn.Parameter(w) for w in weights]
    optimizer = torch.optim.AdamW(parameters, lr=0.01, betas=(0.9, 0.99), weight_decay=weight_decay)
    for _ in range(3):
        before = [p.detach().clone() for p in parameters]
        for p in parameters[:2]:  # the last has no gradient: it stays
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        optimizer.step()
        moved = torch.cat([(p.detach() - b).flatten() for p, b in zip(parameters, before, strict=True)])
        assert update_norm(optimizer) == pytest.approx(moved.norm().item(), rel=1e-6)


def test_of_no_gradient_it_is_zero() -> None:
    assert update_norm(torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])) == 0.0
