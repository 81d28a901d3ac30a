"""Generation by transformers' own model code: slow and simple, for small runs and as a reference.

One worker thread owns the module, so requests and weight loads take turns and every completion is drawn
by one version.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.cache_utils import DynamicCache

from rollout.engines import weights
from rollout.engines.base import CHECK_BYTES, TensorReport
from rollout.engines.quantize import is_quantized, to_int8
from rollout.engines.tensors import StoredTensors, pieces, same_bits
from rollout.sampling import check_unfiltered
from shared.errors import EngineError
from shared.types import Completion, FinishReason, Float32Array, Int32Array, SamplingSettings, VersionSpan

T = TypeVar("T")


class TransformersEngine:
    """The engine interface on a transformers module. Draws the same tokens again for the same seed and calls."""

    def __init__(
        self,
        *,
        dtype: str = "auto",
        quantization: Literal["none", "int8"] = "none",
        device: str = "cpu",
        max_model_len: int = 2048,
        seed: int = 0,
    ) -> None:
        self._dtype = dtype
        self._quantized = quantization == "int8"
        self._device = torch.device(device)
        self._max_model_len = max_model_len
        self._generator = torch.Generator(self._device).manual_seed(seed)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="transformers-engine")
        self._model: Any = None
        self._layout: dict[str, weights.StoredTensor] = {}
        self._staged: tuple[Path, dict[str, torch.Tensor]] | None = None
        self._policy_version = -1
        self._failure: str | None = None

    @property
    def policy_version(self) -> int:
        """The version whose weights draw tokens now."""
        return self._policy_version

    @property
    def failure(self) -> str | None:
        """Why the engine is dead, or None."""
        return self._failure

    async def start(self, folder: Path, policy_version: int) -> None:
        """Load the Hugging Face model folder and be ready to generate."""
        await self._in_thread(lambda: self._start(folder, policy_version))

    async def generate(self, prompt_ids: Int32Array, n: int, sampling: SamplingSettings) -> list[Completion]:
        """Draw n completions of the prompt [P]. At temperature 0 the log-probs are those of temperature 1."""
        check_unfiltered(sampling)
        return await self._in_thread(lambda: self._generate(prompt_ids, n, sampling))

    async def stage(self, folder: Path) -> None:
        """Read the folder's tensors into memory, beside the requests."""
        self._staged = (folder, await asyncio.to_thread(self._read, folder))

    async def load(self, folder: Path, policy_version: int) -> float:
        """Replace the weights between two requests; returns the seconds that others waited for it."""
        if self._staged is None or self._staged[0] != folder:
            await self.stage(folder)
        return await self._in_thread(lambda: self._load(policy_version))

    async def check_tensors(self, folder: Path) -> TensorReport:
        """Compare every parameter, also the second name of a tied one, with the folder's, between requests."""
        names = await self._in_thread(lambda: self._ready().state_dict())
        report = TensorReport()
        for piece in pieces({name: tensor.nbytes for name, tensor in names.items()}, CHECK_BYTES):
            report += await self._in_thread(partial(self._check, folder, piece))
        return report

    async def logprobs(self, token_ids: Int32Array) -> Float32Array:
        """Log-prob of tokens 1..T-1 given those before, temperature 1, from current weights: [T-1]."""
        return await self._in_thread(lambda: self._logprobs(token_ids))

    async def stop(self) -> None:
        """Drop the model; requests that still wait are cancelled."""
        self._failure = self._failure or "the transformers engine was stopped"
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._model = None

    async def _in_thread(self, work: Callable[[], T]) -> T:
        if self._failure is not None:
            raise EngineError(self._failure)
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    # Below runs in the worker thread.

    def _start(self, folder: Path, policy_version: int) -> None:
        self._layout = weights.list_tensors(folder)
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=self._dtype, local_files_only=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise EngineError(f"transformers cannot load {folder}: {error}") from error
        self._model = model.to(self._device).eval()
        if self._quantized:
            self._model.load_state_dict(self._read(folder), strict=False)
        self._policy_version = policy_version

    def _ready(self) -> Any:
        if self._model is None:
            raise EngineError(self._failure or "the transformers engine is not started")
        return self._model

    @torch.inference_mode()
    def _generate(self, prompt_ids: Int32Array, n: int, sampling: SamplingSettings) -> list[Completion]:
        model = self._ready()
        room = self._max_model_len - len(prompt_ids)
        if n < 1 or not len(prompt_ids) or room < 1 or sampling.max_tokens < 1:
            raise EngineError(
                f"cannot draw {n} completions of up to {sampling.max_tokens} tokens for a prompt of "
                f"{len(prompt_ids)} (max_model_len {self._max_model_len})"
            )
        stops = torch.tensor(sampling.stop_token_ids, dtype=torch.long, device=self._device)
        cache = DynamicCache(config=model.config)
        ids = self._tensor(prompt_ids).expand(n, -1)
        done = torch.zeros(n, dtype=torch.bool, device=self._device)
        drawn: list[torch.Tensor] = []  # [n] each; a row that is done draws on and is cut below
        found: list[torch.Tensor] = []
        for _ in range(min(sampling.max_tokens, room)):
            logits = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
            self._check_finite(logits)
            token, logprob = draw(logits, sampling.temperature, self._generator)
            drawn.append(token)
            found.append(logprob)
            done |= torch.isin(token, stops)
            if bool(done.all()):
                break
            ids = token[:, None]
        return self._cut(torch.stack(drawn, 1), torch.stack(found, 1), stops)

    def _cut(self, tokens: torch.Tensor, logprobs: torch.Tensor, stops: torch.Tensor) -> list[Completion]:
        """Completions from rows [n, T], each ending with its first stop token."""
        stopped = torch.isin(tokens, stops).cpu().numpy()
        token_rows = tokens.to(torch.int32).cpu().numpy()
        logprob_rows = logprobs.float().cpu().numpy()
        completions = []
        for row, logprob_row, stop in zip(token_rows, logprob_rows, stopped, strict=True):
            length = int(stop.argmax()) + 1 if stop.any() else len(row)
            reason: FinishReason = "stop" if stop.any() else "length"
            versions = (VersionSpan(self._policy_version, 0, length),)
            completions.append(Completion(row[:length].copy(), logprob_row[:length].copy(), versions, reason))
        return completions

    @torch.inference_mode()
    def _logprobs(self, token_ids: Int32Array) -> Float32Array:
        model = self._ready()
        if len(token_ids) < 2:
            return np.zeros(0, dtype=np.float32)
        ids = self._tensor(token_ids)
        logits = model(ids, use_cache=False).logits[0, :-1]
        self._check_finite(logits)
        found: Float32Array = logits.float().log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0].cpu().numpy()
        return found

    def _check_finite(self, logits: torch.Tensor) -> None:
        if not bool(torch.isfinite(logits).all()):
            raise EngineError(f"policy_version {self._policy_version} gives logits that are not finite")

    def _tensor(self, token_ids: Int32Array) -> torch.Tensor:
        return torch.from_numpy(token_ids.astype(np.int64)).to(self._device)[None]

    def _read(self, folder: Path) -> dict[str, torch.Tensor]:
        """The folder's tensors, on the device."""
        offered = weights.list_tensors(folder)
        weights.check_same_layout(self._layout, offered)
        state: dict[str, torch.Tensor] = {}
        try:
            for file in sorted({tensor.file for tensor in offered.values()}):
                state.update(load_file(file, device=str(self._device)))
        except (OSError, SafetensorError) as error:
            raise EngineError(f"{folder} cannot be read: {error}") from error
        return {name: self._as_computed_with(name, tensor) for name, tensor in state.items()}

    def _as_computed_with(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        return to_int8(tensor) if self._quantized and is_quantized(name, tensor) else tensor

    @torch.no_grad()
    def _load(self, policy_version: int) -> float:
        model = self._ready()
        assert self._staged is not None
        (folder, state), self._staged = self._staged, None
        started = time.perf_counter()
        try:
            model.load_state_dict(state, strict=False)  # a tied output layer is not in the files
        except RuntimeError as error:
            self._failure = f"the transformers engine is dead: loading policy_version {policy_version}: {error}"
            raise EngineError(f"{self._failure} (from {folder})") from error
        self._policy_version = policy_version
        return time.perf_counter() - started

    def _check(self, folder: Path, names: list[str]) -> TensorReport:
        held = self._ready().state_dict()
        wrong, unchecked, size = [], [], 0
        with StoredTensors(folder) as stored:
            for name in names:
                expected = stored.get(name)
                if expected is None:
                    unchecked.append(name)
                    continue
                size += held[name].nbytes
                if not same_bits(held[name], self._as_computed_with(name, expected)):
                    wrong.append(name)
        return TensorReport(tuple(wrong), tuple(unchecked), len(names) - len(wrong) - len(unchecked), size)


def draw(logits: torch.Tensor, temperature: float, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw a token per row of logits [n, V]; returns tokens [n] and their log-probs [n] as drawn, float32.

    Temperature 0 takes the most likely token, with its log-prob at temperature 1.
    """
    logprobs = (logits.float() / (temperature or 1.0)).log_softmax(-1)
    if temperature == 0:
        token = logprobs.argmax(-1, keepdim=True)
    else:
        token = torch.multinomial(logprobs.exp(), 1, generator=generator)
    return token[:, 0], logprobs.gather(-1, token)[:, 0]
