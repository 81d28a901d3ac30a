"""What a worker does beyond vLLM's own weight update: it compares what arrives, and recovers when nothing more does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from rollout.engines.checksums import tensor_checksum


class Checked:
    """Stands before a model's `load_weights`: only tensors that are as published get through, each once."""

    def __init__(self, model: Any, checksums: Mapping[str, int], also: str | None) -> None:
        self._model = model
        self._missing = dict(checksums)
        self._also = also  # a name beyond the published ones: the output layer of its own

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> Any:
        """Raises RuntimeError for a tensor that is not what was published."""
        return self._model.load_weights([(name, self._check(name, tensor)) for name, tensor in weights])

    def _check(self, name: str, tensor: Tensor) -> Tensor:
        if name == self._also:
            return tensor
        if name not in self._missing:
            raise RuntimeError(f"{name} was received, and was not published or came twice")
        if tensor_checksum(tensor) != self._missing.pop(name):
            raise RuntimeError(f"{name} is not what was published: its checksum differs")
        return tensor

    def check_complete(self) -> None:
        """Raises RuntimeError where something did not come."""
        if self._missing:
            raise RuntimeError(f"{len(self._missing)} tensors did not come, {min(self._missing)} among them")


class TransferWorker:
    """An extension of vLLM's worker, reached by collective_rpc."""

    weight_transfer_engine: Any
    vllm_config: Any

    def receive_checked(self, update_info: dict[str, Any], checksums: dict[str, int], also: str | None) -> None:
        """Receive by vLLM's `update_weights`, every tensor compared with its published checksum before it is loaded."""
        engine = self.weight_transfer_engine
        model = engine.model
        engine.model = checked = Checked(model, checksums, also)
        try:
            self.update_weights(update_info)  # type: ignore[attr-defined]  # the worker's own
        finally:
            engine.model = model
        checked.check_complete()

    def drop_weight_update(self) -> None:
        """Ends an update that broke off: without it vLLM 0.32 can load neither files nor another update."""
        from vllm.config import set_current_vllm_config

        engine = self.weight_transfer_engine
        with set_current_vllm_config(self.vllm_config):
            engine.finish_weight_update()
            engine.reset_weight_update_target()
        self._weight_update_active = False
        engine.shutdown()  # its peers have gone on without it
