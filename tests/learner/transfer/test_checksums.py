"""Both ends take the same checksum, and it sees what it has to see."""

from __future__ import annotations

import pytest
import torch

from learner.transfer.checksums import BLOCK, tensor_checksum
from rollout.engines.checksums import tensor_checksum as of_the_server


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3,), (7, 5), (BLOCK,), (BLOCK + 1,), (2 * BLOCK + 3,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.uint8])
def test_learner_and_server_agree(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor = (torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 100).to(dtype)
    found = tensor_checksum(tensor)
    assert found == of_the_server(tensor)
    assert 0 <= found < 2**64


def test_every_single_bit_counts_wherever_it_is() -> None:
    tensor = torch.randn(BLOCK + 100, generator=torch.Generator().manual_seed(2))
    whole = tensor_checksum(tensor)
    words = tensor.view(torch.int32)
    for place in (0, 1, 77, BLOCK - 1, BLOCK, BLOCK + 99):
        for bit in (0, 15, 30, 31):
            mask = -(2**31) if bit == 31 else 1 << bit
            words[place] ^= mask
            assert tensor_checksum(tensor) != whole, (place, bit)
            words[place] ^= mask
    assert tensor_checksum(tensor) == whole


def test_exchanged_shortened_and_reordered_tensors_differ() -> None:
    a, b = torch.randn(2, 4096, generator=torch.Generator().manual_seed(3))
    assert tensor_checksum(a) != tensor_checksum(b)
    assert tensor_checksum(a[:-1]) != tensor_checksum(a)
    assert tensor_checksum(torch.cat([a, torch.zeros(1)])) != tensor_checksum(a)
    assert tensor_checksum(a.flip(0)) != tensor_checksum(a)
    assert tensor_checksum(torch.cat([a, b])) != tensor_checksum(torch.cat([b, a]))
    swapped = a.clone()
    swapped[[5, 6]] = a[[6, 5]]
    assert tensor_checksum(swapped) != tensor_checksum(a)


def test_the_layout_in_memory_does_not_matter() -> None:
    tensor = torch.randn(64, 32)
    assert tensor_checksum(tensor.t().contiguous().t()) == tensor_checksum(tensor)
    assert tensor_checksum(torch.stack([tensor, tensor])[0]) == tensor_checksum(tensor)
