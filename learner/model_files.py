"""A model as the files of a Hugging Face folder: what save_pretrained writes, faster, in the published precision."""

from __future__ import annotations

import tempfile
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from learner.weight_file import WEIGHTS, Layout, layout_of, write_new
from shared.checksums import Checksum

_NOTHING = "nothing"  # name of the only tensor, where just the other files are wanted


class ModelFiles:
    """The files of a module whose weights are published as `dtype`.

    Only the weights change between versions. The other files are made once, by save_pretrained itself.
    """

    def __init__(self, module: Any, dtype: torch.dtype) -> None:
        self._module = module
        self._dtype = dtype

    def tensors(self) -> dict[str, Tensor]:
        """The weights as they are now, by their names in the file, tied ones once."""
        from transformers.core_model_loading import revert_weight_conversion

        ignored = set(getattr(self._module, "_keys_to_ignore_on_save", None) or ())
        seen: set[int] = set()
        kept: dict[str, Tensor] = {}
        for name, tensor in self._module.state_dict().items():
            if name not in ignored and (tensor.data_ptr() not in seen or not tensor.numel()):
                kept[name] = tensor
            seen.add(tensor.data_ptr())
        named: dict[str, Tensor] = revert_weight_conversion(self._module, kept)
        return named

    @cached_property
    def layout(self) -> Layout:
        """Where each of them is in the file."""
        return layout_of(self.tensors(), self._dtype)

    @cached_property
    def others(self) -> dict[str, bytes]:
        """Every file but the weights."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            self._module.save_pretrained(folder, state_dict={_NOTHING: torch.zeros(1)})
            if self._module.dtype != self._dtype:
                config = deepcopy(self._module.config)
                config.dtype = self._dtype
                config.save_pretrained(folder)
            return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != WEIGHTS}

    def save_others(self, folder: Path) -> None:
        """Writes every file but the weights. Raises OSError."""
        for name, data in self.others.items():
            (folder / name).write_bytes(data)

    def checksum(self) -> str:
        """Of the weights' file, were it written now."""
        checksum = Checksum()
        for piece in self.layout.pieces(self.tensors()):
            checksum.update(piece)
        return checksum.text

    def save(self, folder: Path) -> str:
        """Writes all of them. Returns the checksum of the weights' file. Raises OSError."""
        folder.mkdir(parents=True, exist_ok=True)
        self.save_others(folder)
        return write_new(folder / WEIGHTS, self.layout.size, self.layout.pieces(self.tensors()))
