"""The policy: a Hugging Face causal language model, its log-probs of given tokens, its files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from learner.attention import NAME as PACKED_ATTENTION
from learner.batch import MicroBatch
from learner.head import TokenOutputs, token_outputs
from learner.model_files import ModelFiles
from learner.packing import Packed, packed
from shared.config import Config
from shared.errors import ConfigError

Dtype = Literal["float32", "bfloat16"]

_SCALED_LOGITS = ("final_logit_softcapping", "logits_scaling", "logit_scale")
_APART = 1e-3  # nats by which a sequence may differ for what stands before it in the row: rounding


def use_configured_threads() -> None:
    """Keeps torch to OMP_NUM_THREADS, if that is set: learner and engine share the cores."""
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdigit() and int(threads) > 0:
        torch.set_num_threads(int(threads))


def choose_device(wanted: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device to train on. Raises ConfigError where it is not there."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("learner.device is 'cuda', but torch finds no CUDA device; use 'cpu' or 'auto'")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def load_policy(config: Config) -> PolicyModel:
    """The model to train, as the configuration wants it computed. Raises ConfigError where it cannot be loaded."""
    learner, dtype = config.learner, config.model.dtype
    device = choose_device(learner.device)
    policy = PolicyModel.load(
        config.model.path, dtype, device, matrices=matrix_dtype(learner.matrix_dtype, dtype, device)
    )
    if learner.activation_checkpointing:
        policy.checkpoint_activations()
    return policy


def matrix_dtype(wanted: Literal["auto", "float32", "bfloat16"], published: Dtype, device: torch.device) -> Dtype:
    """The precision of matrix products: where nobody asks for one, the published one on CUDA, float32 on a CPU."""
    if wanted != "auto":
        return wanted
    return published if device.type == "cuda" else "float32"


class PolicyModel:
    """A model whose weights are float32 here and `dtype` in the files that it publishes."""

    def __init__(
        self, module: Any, dtype: Dtype = "float32", *, matrices: Dtype = "float32", key: str = "model.path"
    ) -> None:
        """`matrices` is the precision of matrix products; `key` is where the configuration names the model."""
        self.module: Any = module.eval()  # no dropout: ratios compare weights, not noise
        self.dtype = getattr(torch, dtype)
        self.matrices: Dtype = matrices
        for name in _SCALED_LOGITS:
            if getattr(module.config, name, None) not in (None, 1, 1.0):
                raise ConfigError(f"{key}: its config sets {name}, which the learner cannot recompute")
        try:
            module.set_attn_implementation(PACKED_ATTENTION)
        except ValueError as error:
            raise ConfigError(f"{key}: its attention cannot be kept within packed trajectories: {error}") from None

    @classmethod
    def load(
        cls,
        path: str,
        dtype: Dtype,
        device: torch.device,
        *,
        matrices: Dtype = "float32",
        key: str = "model.path",
    ) -> PolicyModel:
        """Loads a Hugging Face folder or hub name. Raises ConfigError where that is impossible."""
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        try:
            module: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{key} {path!r} cannot be loaded: {error}") from None
        policy = cls(module.to(device), dtype, key=key)
        policy._check_packing(key)
        policy.matrices = matrices
        return policy

    def _check_packing(self, key: str) -> None:
        """Refuses a model that sees what stands before a sequence in the row, as one with a state does."""
        first, second = list(range(1, 9)), list(range(9, 17))
        try:
            [alone] = self.sequence_logprobs([second])
            beside = self.sequence_logprobs([first, second])[1]
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{key}: it cannot compute packed trajectories: {error}") from None
        if not np.allclose(alone, beside, rtol=0, atol=_APART):
            raise ConfigError(f"{key}: its layers do not keep packed trajectories apart")

    def checkpoint_activations(self) -> None:
        """From now on a layer keeps its input only, and computes the rest again in the backward pass."""
        from transformers.modeling_layers import GradientCheckpointingLayer

        for layer in self.module.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = next(self.module.parameters()).device
        return device

    @property
    def vocab_size(self) -> int:
        """V, rows of the embedding."""
        return int(self.module.get_input_embeddings().weight.shape[0])

    def named_parameters(self) -> dict[str, Tensor]:
        """Every weight once (tied ones under their first name), in a fixed order."""
        return dict(self.module.named_parameters())

    def logprobs(self, batch: MicroBatch) -> Tensor:
        """Log-probs of the trained tokens at the temperature they were drawn at, [n], with gradient."""
        return self.outputs(batch).logprobs

    def outputs(self, batch: MicroBatch, *, entropy: bool = False, known: TokenOutputs | None = None) -> TokenOutputs:
        """What the policy says of the trained tokens, at the temperature they were drawn at, with gradient.

        What is `known` from an earlier pass with the same weights is not computed again, but gets its gradient.
        """
        hidden = self._hidden(batch.packed).index_select(0, batch.before)
        return self._head(hidden, batch.tokens, batch.temperature, entropy=entropy, known=known)

    @torch.inference_mode()
    def sequence_logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probs of tokens 1..T-1 of each sequence at temperature 1, nats."""
        none, ids = np.zeros(0, dtype=np.int32), [np.array(sequence, dtype=np.int32) for sequence in sequences]
        row = packed([(i, none, own) for i, own in enumerate(ids)]).to(self.device)
        tokens = torch.from_numpy(np.concatenate([own[1:] for own in ids]).astype(np.int64)).to(self.device)
        before = np.concatenate([one.whole()[:-1] for one in row.placed])
        hidden = self._hidden(row).index_select(0, torch.from_numpy(before).to(self.device))
        logprobs = self._head(hidden, tokens, torch.ones_like(tokens, dtype=torch.float32)).logprobs
        return [piece.tolist() for piece in logprobs.split([len(own) - 1 for own in ids])]

    @cached_property
    def files(self) -> ModelFiles:
        """The model as files, in the published precision."""
        return ModelFiles(self.module, self.dtype)

    def save(self, folder: Path) -> None:
        """Writes what save_pretrained writes, in the published precision, tied weights once. Raises OSError."""
        self.files.save(folder)

    def published(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor that `save` writes, by name, in the published precision, one at a time."""
        for name, tensor in sorted(self.files.tensors().items()):
            yield name, tensor.detach().to(self.dtype) if tensor.is_floating_point() else tensor.detach()

    def _hidden(self, row: Packed) -> Tensor:
        """Last hidden states, [N, d]."""
        with self._autocast():
            outputs = self.module.base_model(
                input_ids=row.ids[None], position_ids=row.positions[None], use_cache=False, spread=row.spread
            )
        hidden: Tensor = outputs.last_hidden_state[0]
        return hidden

    def _head(
        self,
        hidden: Tensor,
        tokens: Tensor,
        temperature: Tensor,
        *,
        entropy: bool = False,
        known: TokenOutputs | None = None,
    ) -> TokenOutputs:
        """The output layer for these tokens only."""
        head = self.module.get_output_embeddings()
        return token_outputs(
            hidden, head.weight, head.bias, tokens, temperature, entropy=entropy, known=known, dtype=self._narrow
        )

    @property
    def _narrow(self) -> torch.dtype | None:
        """The precision of matrix products, where it is not that of the weights."""
        return torch.bfloat16 if self.matrices == "bfloat16" else None

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._narrow is None:
            return nullcontext()
        return torch.autocast(self.device.type, self._narrow)
