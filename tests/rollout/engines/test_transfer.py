"""What vLLM is told of a transfer is what its own engines take, nccl's too, which cannot be run here."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from learner.transfer.nccl import SilentClient, published_source
from rollout.engines.checksums import tensor_checksum
from rollout.engines.transfer import Meeting, init_info, update_info
from rollout.engines.transfer_worker import Checked
from shared.tensor_table import TensorRow

MEETING = Meeting("nccl", epoch=1, group=3, host="10.0.0.1", port=29500, rank=2, world_size=5, deadline_s=60.0)
TABLE = [
    TensorRow("model.embed_tokens.weight", "bfloat16", (8, 4), 1),
    TensorRow("model.norm.weight", "bfloat16", (4,), 2),
]


class Loader:
    """A model as far as a transfer knows it."""

    def __init__(self) -> None:
        self.loaded: dict[str, torch.Tensor] = {}

    def load_weights(self, weights: list[tuple[str, torch.Tensor]]) -> None:
        self.loaded.update(weights)


def checked(tensors: dict[str, torch.Tensor], also: str | None = None) -> tuple[Loader, Checked]:
    loader = Loader()
    return loader, Checked(loader, {name: tensor_checksum(t) for name, t in tensors.items()}, also)


def test_only_tensors_that_are_as_published_reach_the_model_each_once() -> None:
    tensors = {"a": torch.randn(5), "b": torch.randn(2, 3)}
    loader, door = checked(tensors, also="head")
    door.load_weights([("a", tensors["a"]), ("head", torch.ones(1))])
    with pytest.raises(RuntimeError, match="1 tensors did not come, b among them"):
        door.check_complete()
    door.load_weights([("b", tensors["b"])])
    door.check_complete()
    assert set(loader.loaded) == {"a", "b", "head"}
    with pytest.raises(RuntimeError, match="a was received, and was not published or came twice"):
        door.load_weights([("a", tensors["a"])])


@pytest.mark.parametrize(("name", "given"), [("a", "b"), ("c", "a")])
def test_exchanged_or_unknown_tensors_do_not_reach_the_model(name: str, given: str) -> None:
    tensors = {"a": torch.randn(4), "b": torch.randn(4)}
    loader, door = checked(tensors)
    with pytest.raises(RuntimeError, match=r"is not what was published|was not published"):
        door.load_weights([(name, tensors[given])])
    assert loader.loaded == {}


def test_an_untied_output_layer_gets_the_embedding_over_gloo_and_vllm_sees_to_it_over_nccl() -> None:
    assert update_info("gloo", TABLE, untie=True)["head_from"] == "model.embed_tokens.weight"
    assert update_info("gloo", TABLE, untie=False)["head_from"] is None
    assert "head_from" not in update_info("nccl", TABLE, untie=False)


@pytest.mark.vllm
def test_vllm_s_nccl_engine_takes_what_it_is_told_at_both_ends() -> None:
    from vllm.distributed.weight_transfer.base import VLLMWeightSyncClient, WeightSource
    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
    from vllm.distributed.weight_transfer.nccl_engine import (
        NCCLTrainerInitInfo,
        NCCLWeightTransferEngine,
        NCCLWeightTransferInitInfo,
        NCCLWeightTransferUpdateInfo,
    )

    worker = NCCLWeightTransferInitInfo(**init_info(MEETING))
    trainer = NCCLTrainerInitInfo(master_address="10.0.0.1", master_port=29500, world_size=5, rank=0)
    assert (worker.rank_offset, worker.world_size, trainer.is_sender) == (2, 5, True)
    shared = {f.name for f in fields(worker)} & {f.name for f in fields(trainer)}
    assert {name: getattr(worker, name) for name in shared} == {name: getattr(trainer, name) for name in shared}
    assert {"packed", "packed_buffer_size_bytes", "packed_num_buffers"} <= shared
    assert NCCLWeightTransferUpdateInfo(**update_info("nccl", TABLE, untie=False)).shapes == [[8, 4], [4]]
    assert NCCLWeightTransferEngine.init_info_cls is NCCLWeightTransferInitInfo
    assert isinstance(SilentClient(), VLLMWeightSyncClient)
    assert "nccl" in WeightTransferTrainerFactory._registry
    tensors = {"b": torch.zeros(2, 3, dtype=torch.bfloat16), "a": torch.ones(1)}
    source = published_source(WeightSource, tensors.items)
    assert [(m.name, m.dtype, m.shape) for m in source.metadata()] == [
        ("b", torch.bfloat16, (2, 3)),
        ("a", torch.float32, (1,)),
    ]
    assert [(name, tensor.shape) for name, tensor in source] == [("b", (2, 3)), ("a", (1,))]
    assert [(name, tensor.shape) for name, tensor in source] == [("b", (2, 3)), ("a", (1,))], "every round anew"


@pytest.mark.vllm
def test_the_gloo_engine_takes_what_it_is_told_and_stands_in_vllm_s_registry() -> None:
    from dataclasses import replace

    from vllm.distributed.weight_transfer.base import WeightTransferEngine
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    from rollout.engines.transfer_gloo import GlooInitInfo, GlooTransferEngine, GlooUpdateInfo, register

    info = GlooInitInfo(**init_info(replace(MEETING, kind="gloo")))
    assert (info.rank_offset, info.group, info.deadline_s) == (2, 3, 60.0)
    assert GlooUpdateInfo(**update_info("gloo", TABLE, untie=True)).names == [row.name for row in TABLE]
    register()
    assert WeightTransferEngineFactory._registry["gloo"]() is GlooTransferEngine
    assert issubclass(GlooTransferEngine, WeightTransferEngine)
