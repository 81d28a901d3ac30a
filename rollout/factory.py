"""The engine that the configuration names."""

from __future__ import annotations

import zlib
from typing import Literal

from rollout.engines.base import Engine
from shared.config import Config
from shared.config.rollout import TransformersEngineConfig, VllmEngineConfig
from shared.errors import EngineError


def build_engine(config: Config, server_id: str) -> tuple[Engine, str]:
    """The engine, not yet started, and the device that it runs on. Imports what it needs: seconds.

    Raises:
        EngineError: it is not installed, or not for the wanted device.

    """
    seed = (config.run.seed + zlib.crc32(server_id.encode())) % 2**31  # servers must not draw the same numbers
    if isinstance(config.rollout.engine, VllmEngineConfig):
        return _vllm(config.rollout.engine, config.engine_dtype, seed, config.store.transfer.kind)
    return _transformers(config.rollout.engine, config.engine_dtype, seed)


def _vllm(
    engine: VllmEngineConfig, dtype: str, seed: int, transfer: Literal["files", "nccl", "gloo"]
) -> tuple[Engine, str]:
    try:
        from rollout.engines.vllm import VllmEngine
        from rollout.engines.vllm_launch import device_type
    except ImportError as error:
        raise EngineError(
            f"rollout.engine.kind is vllm, but vLLM cannot be imported ({error}); install it, or set "
            "rollout.engine.kind to transformers"
        ) from error
    device = device_type()
    built = VllmEngine(
        dtype=dtype,
        quantization=engine.quantization,
        max_model_len=engine.max_model_len,
        max_num_seqs=engine.max_num_seqs,
        kv_cache_gib=engine.kv_cache_gib if device == "cpu" else None,
        gpu_memory_utilization=engine.gpu_memory_utilization,
        tensor_parallel_size=engine.tensor_parallel_size,
        seed=seed,
        device=engine.device,
        enforce_eager=engine.enforce_eager,
        startup_deadline_s=engine.startup_deadline_s,
        transfer=transfer,
    )
    return built, device


def _transformers(engine: TransformersEngineConfig, dtype: str, seed: int) -> tuple[Engine, str]:
    import torch

    from rollout.engines.transformers import TransformersEngine

    device = engine.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise EngineError("rollout.engine.device is 'cuda', but torch finds no GPU; set it to auto or cpu")
    return TransformersEngine(dtype=dtype, quantization=engine.quantization, device=device, seed=seed), device
