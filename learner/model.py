"""The policy: a Hugging Face causal language model, its log-probs of given tokens, its files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from learner.batch import MicroBatch, cut
from learner.model_files import ModelFiles
from shared.errors import ConfigError

HEAD_ELEMENTS = 2**28  # logits that are held at once; more trained tokens go through the head in pieces
_SCALED_LOGITS = ("final_logit_softcapping", "logits_scaling", "logit_scale")


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


class TokenOutputs(NamedTuple):
    """What the policy says of n tokens."""

    logprobs: Tensor  # [n], nats
    entropy: Tensor | None  # [n], nats, of the distribution that each was drawn from; None if not asked for


class PolicyModel:
    """A model whose weights are float32 here and `dtype` in the files that it publishes."""

    def __init__(
        self, module: Any, dtype: Literal["float32", "bfloat16"] = "float32", *, key: str = "model.path"
    ) -> None:
        """`key` is where the configuration names the model."""
        self.module: Any = module.eval()  # no dropout: ratios compare weights, not noise
        self.dtype = getattr(torch, dtype)
        for name in _SCALED_LOGITS:
            if getattr(module.config, name, None) not in (None, 1, 1.0):
                raise ConfigError(f"{key}: its config sets {name}, which the learner cannot recompute")

    @classmethod
    def load(
        cls, path: str, dtype: Literal["float32", "bfloat16"], device: torch.device, *, key: str = "model.path"
    ) -> PolicyModel:
        """Loads a Hugging Face folder or hub name. Raises ConfigError where that is impossible."""
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        try:
            module: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="sdpa")
        except (OSError, ValueError) as error:
            raise ConfigError(f"{key} {path!r} cannot be loaded: {error}") from None
        return cls(module.to(device), dtype, key=key)

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

    def outputs(self, batch: MicroBatch, *, entropy: bool = False) -> TokenOutputs:
        """What the policy says of the trained tokens, at the temperature they were drawn at, with gradient.

        Padding needs no mask: it is on the right, and attention is causal.
        """
        hidden = self._hidden(batch.input_ids)[batch.rows, batch.columns - 1]
        tokens = batch.input_ids[batch.rows, batch.columns]
        columns = self._head(hidden, tokens, batch.temperature, entropy=entropy)
        return TokenOutputs(columns[:, 0], columns[:, 1] if entropy else None)

    @torch.no_grad()
    def sequence_logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probs of tokens 1..T-1 of each sequence at temperature 1, nats. Like lengths are computed together."""
        lengths = [len(sequence) for sequence in sequences]
        found: dict[int, list[float]] = {}
        for piece in cut(lengths, max(lengths)):
            found.update(zip(piece, self._sequence_logprobs([sequences[i] for i in piece]), strict=True))
        return [found[i] for i in range(len(sequences))]

    def _sequence_logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        ids = torch.zeros(len(sequences), max(map(len, sequences)), dtype=torch.int64, device=self.device)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = torch.tensor(sequence)
        lengths = torch.tensor([len(sequence) for sequence in sequences], device=self.device)
        real = torch.arange(1, ids.shape[1], device=self.device) < lengths[:, None]
        tokens = ids[:, 1:][real]
        neutral = torch.ones_like(tokens, dtype=torch.float32)
        logprobs = self._head(self._hidden(ids)[:, :-1][real], tokens, neutral)[:, 0]
        return [piece.tolist() for piece in logprobs.split((lengths - 1).tolist())]

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

    def _hidden(self, input_ids: Tensor) -> Tensor:
        """Last hidden states, [b, L, hidden]."""
        with self._autocast():
            hidden: Tensor = self.module.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
        return hidden

    def _head(self, hidden: Tensor, tokens: Tensor, temperature: Tensor, *, entropy: bool = False) -> Tensor:
        """The output layer for the trained tokens only, in pieces where the vocabulary is large: [n, 1 or 2]."""
        size = max(1, HEAD_ELEMENTS // self.vocab_size)
        if len(tokens) <= size:
            return self._token_columns(hidden, tokens, temperature, entropy)
        pieces = zip(*(torch.split(whole, size) for whole in (hidden, tokens, temperature)), strict=True)
        return torch.cat([checkpoint(self._token_columns, *piece, entropy, use_reentrant=False) for piece in pieces])

    def _token_columns(self, hidden: Tensor, tokens: Tensor, temperature: Tensor, entropy: bool) -> Tensor:
        """Log-prob and, if asked for, entropy."""
        with self._autocast():
            logits = self.module.get_output_embeddings()(hidden)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature[:, None]
        logprobs = torch.log_softmax(logits, -1)
        sampled = logprobs.gather(1, tokens[:, None])
        if not entropy:
            return sampled
        return torch.cat([sampled, -(logprobs.exp() * logprobs).sum(-1, keepdim=True)], 1)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.dtype == torch.float32 or self.device.type != "cuda":
            return nullcontext()
        return torch.autocast("cuda", self.dtype)
