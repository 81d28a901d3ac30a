"""The tensors of a model folder, to be compared with those that an engine holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open

from rollout.engines.weights import LM_HEAD, list_tensors
from shared.errors import EngineError

EMBEDDING = "embed_tokens.weight"


class StoredTensors:
    """The folder's tensors by name, read when they are asked for. A tied output layer has the embedding's."""

    def __init__(self, folder: Path) -> None:
        """Raises EngineError where the folder cannot be read."""
        self._files = {name: tensor.file for name, tensor in list_tensors(folder).items()}
        embeddings = [name for name in self._files if name.endswith(EMBEDDING)]
        self._tied = embeddings[0] if LM_HEAD not in self._files and len(embeddings) == 1 else None
        self._stack = ExitStack()
        self._open: dict[Path, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def get(self, name: str) -> torch.Tensor | None:
        """A tensor on the CPU, in the file's precision; None where the folder has none of this name."""
        name = self._tied if self._tied and name == LM_HEAD else name
        file = self._files.get(name)
        if file is None:
            return None
        try:
            if file not in self._open:
                self._open[file] = self._stack.enter_context(safe_open(str(file), framework="pt"))
            tensor: torch.Tensor = self._open[file].get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise EngineError(f"{file} cannot be read: {error}") from error
        return tensor


def same_bits(held: torch.Tensor, expected: torch.Tensor) -> bool:
    """True where both are the same bit by bit, `expected` rounded to the precision of `held` as a load rounds it."""
    if held.shape != expected.shape:
        return False
    rounded = expected.to(device=held.device, dtype=held.dtype)
    return torch.equal(_bits(held), _bits(rounded))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as whole numbers: equal where NaN is, and -0.0 is not 0.0."""
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.detach().contiguous().view(whole)


def pieces(sizes: Mapping[str, int], most: int) -> Iterator[list[str]]:
    """The names in their order, cut into pieces of at most so many bytes; one that is larger is a piece of its own."""
    piece: list[str] = []
    total = 0
    for name, size in sizes.items():
        if piece and total + size > most:
            yield piece
            piece, total = [], 0
        piece.append(name)
        total += size
    if piece:
        yield piece
