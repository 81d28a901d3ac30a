"""vLLM's weight-transfer engine over gloo, in vLLM's own registry: the nccl one's twin for workers without a GPU.

As that one it loads what it receives at once, tensor by tensor, so a transfer that breaks off leaves a mixture.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

c10d: Any = torch.distributed  # what its stubs leave out is needed here
LM_HEAD = "lm_head.weight"


@dataclass
class GlooInitInfo(WeightTransferInitInfo):
    """Where the process group is formed."""

    master_address: str
    master_port: int
    rank_offset: int
    world_size: int
    group: int
    deadline_s: float


@dataclass
class GlooUpdateInfo(WeightTransferUpdateInfo):
    """The tensors, in the order they are sent in."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]
    head_from: str | None = None  # the tensor that the output layer gets too


class GlooTransferEngine(WeightTransferEngine[GlooInitInfo, GlooUpdateInfo]):
    """Receives broadcasts of rank 0 as bytes."""

    init_info_cls = GlooInitInfo
    update_info_cls = GlooUpdateInfo

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._store: Any = None
        self._group: Any = None

    def init_transfer_engine(self, init_info: GlooInitInfo) -> None:
        """Joins; blocks until all ranks have come. Raises RuntimeError after the deadline."""
        self.shutdown()
        limit = timedelta(seconds=init_info.deadline_s)
        address, port, size = init_info.master_address, init_info.master_port, init_info.world_size
        rank = init_info.rank_offset + int(self.parallel_config.rank)
        self._store = c10d.TCPStore(address, port, size, False, limit, wait_for_workers=False)
        self._store.set(f"{init_info.group}/{rank}", "here")  # the learner forms the group once all have come
        options = c10d.ProcessGroupGloo._Options()  # the only way to name the network interface
        options._devices = [c10d.ProcessGroupGloo.create_device(hostname=own_address(address, port))]
        options._timeout = limit
        prefix = c10d.PrefixStore(str(init_info.group), self._store)
        self._group = c10d.ProcessGroupGloo(prefix, rank, size, options)

    def start_weight_update(self) -> None:
        """Lets the model take weights as a checkpoint has them."""
        initialize_layerwise_reload(self.model)

    def finish_weight_update(self) -> None:
        """Puts the weights where the kernels look for them."""
        finalize: Any = finalize_layerwise_reload
        finalize(self.model, self.model_config)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receives; without an accelerator there is nothing to wait for afterwards."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: GlooUpdateInfo) -> None:
        """Raises RuntimeError when a peer is gone or the deadline is over."""
        if self._group is None:
            raise RuntimeError("no process group was joined")
        options = c10d.BroadcastOptions()
        options.rootRank = options.rootTensor = 0
        model: Any = self.model
        for name, dtype, shape in zip(update_info.names, update_info.dtype_names, update_info.shapes, strict=True):
            tensor: Any = torch.empty(shape, dtype=getattr(torch, dtype))
            self._group.broadcast([tensor.reshape(-1).view(torch.uint8)], options).wait()
            model.load_weights([(name, tensor)])
            if name == update_info.head_from:
                model.load_weights([(LM_HEAD, tensor)])

    def shutdown(self) -> None:
        """Leaves the group."""
        self._group = self._store = None


def own_address(host: str, port: int) -> str:
    """The address of this machine from which it reaches another; nothing is sent."""
    family, kind, _, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(target)
        return str(probe.getsockname()[0])


def register() -> None:
    """Makes vLLM know `gloo`, in the process whose worker is to use it."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    WeightTransferEngineFactory.register_engine("gloo", GlooTransferEngine)
