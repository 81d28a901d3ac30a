"""All that is added to vLLM's workers: vLLM takes one class."""

from __future__ import annotations

from rollout.engines.transfer_worker import TransferWorker
from rollout.engines.vllm_tensors import TensorCheck


class WorkerExtension(TensorCheck, TransferWorker):
    """Compares tensors with files, and takes weights over the wire; reached by collective_rpc."""
