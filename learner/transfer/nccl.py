"""Sending by NCCL, through vLLM's own trainer-side engine. NOT RUN so far: it needs two GPUs.

The only module of the learner that imports vLLM: the workers speak vLLM's rendezvous and its packed format, so the
other end has to be vLLM's too. Its client, which would call each server over HTTP, stays silent: the servers are
told through Redis when to join and when to receive.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from learner.transfer.senders import Tensors
from shared.errors import ConfigError, TransferError


class SilentClient:
    """vLLM's VLLMWeightSyncClient, with nothing left to do."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """The servers join when the learner's call says "go"."""

    def start_weight_update(self) -> None:
        """They have said that they are receiving."""

    def update_weights(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None:
        """They know names, dtypes and shapes from the version's table of tensors."""

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """They finish by themselves, and prove what they got."""


class NcclSender:
    """A transfer that hangs cannot be taken back within this process: after one the files are the way."""

    revocable = False

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise ConfigError("store.transfer.kind is nccl, but torch finds no CUDA device; use gloo or files")
        try:
            from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
        except ImportError as error:
            raise ConfigError(
                f"store.transfer.kind is nccl, but vLLM cannot be imported by the learner ({error}): install it there "
                "too, or set store.transfer.kind to files"
            ) from error
        self._init_info = NCCLTrainerInitInfo
        self._engine: Any = None
        self._tensors: Tensors = lambda: ()
        self._address = ("", 0)

    def listen(self, host: str, port: int) -> int:
        """Finds a free port; vLLM listens when the group is opened."""
        self.close()
        try:
            with socket.create_server((host, port)) as found:
                self._address = host, found.getsockname()[1]
        except OSError as error:
            raise ConfigError(f"store.transfer: cannot listen at {host}, port {port}: {error}") from None
        return self._address[1]

    def open(self, world_size: int, group: int, deadline_s: float) -> None:
        """Blocks until every worker has come; vLLM gives up by itself after 300 s, the learner earlier."""
        from vllm.distributed.weight_transfer.base import WeightSource
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

        host, port = self._address
        info = self._init_info(master_address=host, master_port=port, world_size=world_size, rank=0)
        source = published_source(WeightSource, self._current)
        self._engine = WeightTransferTrainerFactory.trainer_init(info, client=SilentClient(), source=source)

    def send(self, tensors: Tensors) -> None:
        """Packed broadcasts from the GPU's memory."""
        if self._engine is None:
            raise TransferError("the NCCL group is not open")
        self._tensors = tensors
        self._engine.send_weights()

    def _current(self) -> Iterable[tuple[str, torch.Tensor]]:
        return self._tensors()

    def close(self) -> None:
        """Ends the communicator. Its peers notice by their deadline."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.shutdown()


def published_source(base: Any, tensors: Tensors) -> Any:
    """The published tensors as vLLM's WeightSource, `base`: its metadata and the tensors, in the table's order."""
    from vllm.distributed.weight_transfer.base import ParamMeta

    class Published(base):  # type: ignore[misc]  # vLLM is loaded late
        def metadata(self) -> list[Any]:
            return [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors()]

        def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
            return iter(tensors())

    return Published()
