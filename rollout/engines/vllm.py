"""vLLM in process: its engine core is a child process, driven through AsyncLLM.

    start   folder --(CPU and tied: untied copy)--> engine process
    stage   files checked, copied, while requests go on
    load    pause (requests kept) --> reload --> label --> resume
    receive process group joined  --> pause (requests kept) --> weights over the wire --> label --> resume
    check   tensors compared with the files, in pieces between which requests go on
    death   the engine process ends --> everything that waits on it raises EngineError

Facts that this file leans on, all seen with vLLM 0.32:

- `pause_generation(mode="keep")` drops the KV and prefix caches; running requests compute theirs again
  from the new weights, so log-probs after the switch are those of the new weights alone.
- On CPU a reload leaves the packed output layer of a tied model at the old weights. Such a model is
  served as an untied copy (`weights.write_untied_copy`).
- A reload that lacks tensors only warns. The layout is compared before anything is paused.
- Calls other than `generate` wait for ever when the engine process dies. `_call` watches it.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import time
from collections.abc import Callable, Coroutine, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from vllm.exceptions import VLLMClientError
from vllm.inputs.engine import tokens_input
from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from rollout.engines import transfer_vllm, vllm_launch, weights
from rollout.engines.base import TensorReport
from rollout.engines.transfer import Meeting, Receiving
from rollout.engines.vllm_check import WORKER_EXTENSION, check_tensors
from rollout.engines.vllm_output import to_completion
from rollout.engines.vllm_requests import probe_params, probed_logprobs, to_params
from rollout.engines.workdir import make_workdir
from shared.errors import EngineError, TransferError
from shared.tensor_table import TensorRow
from shared.types import Completion, Float32Array, Int32Array, SamplingSettings

T = TypeVar("T")
STOP_DEADLINE_S = 4.0
DEFAULT_CPU_KV_CACHE_GIB = 1.0


class VllmEngine:
    """Generation with exact log-probs and in-flight weight updates. One engine, one life: start to stop."""

    def __init__(
        self,
        *,
        dtype: str = "auto",
        quantization: str = "none",  # one of vLLM's that quantize while loading
        max_model_len: int = 2048,  # tokens, prompt and completion
        max_num_seqs: int = 256,  # completions generated at once
        kv_cache_gib: float | None = None,  # None: 1 on CPU, from gpu_memory_utilization on a GPU
        gpu_memory_utilization: float = 0.8,
        tensor_parallel_size: int = 1,
        seed: int = 0,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        enforce_eager: bool | None = None,  # None: on CPU, where compiling takes 30 s and gains little
        startup_deadline_s: float = 600.0,
        load_deadline_s: float = 300.0,
        transfer: Literal["files", "nccl", "gloo"] = "files",  # another way for weights beside files
    ) -> None:
        found = vllm_launch.device_type()
        if device not in ("auto", found):
            raise EngineError(f"device is {device!r}, but the installed vLLM is built for {found!r}")
        self._on_cpu = found == "cpu"
        if kv_cache_gib is None and self._on_cpu:
            kv_cache_gib = DEFAULT_CPU_KV_CACHE_GIB
        self._engine_args: dict[str, Any] = {
            "dtype": dtype,
            "quantization": None if quantization == "none" else quantization,
            "max_model_len": max_model_len,
            "max_num_seqs": max_num_seqs,
            "kv_cache_memory_bytes": None if kv_cache_gib is None else int(kv_cache_gib * vllm_launch.GIB),
            "gpu_memory_utilization": gpu_memory_utilization,
            "tensor_parallel_size": tensor_parallel_size,
            "seed": seed,
            "enforce_eager": self._on_cpu if enforce_eager is None else enforce_eager,
            "logprobs_mode": "processed_logprobs",  # after temperature: of what was drawn
            "generation_config": "vllm",  # the model's own file would add top-p and penalties
            "enable_prefix_caching": True,  # emptied at every load
            "skip_tokenizer_init": True,
            "use_tqdm_on_load": False,
            "worker_extension_cls": WORKER_EXTENSION,
            **transfer_vllm.engine_args(transfer),
        }
        self._group: tuple[int, int] | None = None  # the process group that was joined, of weights over the wire
        self._startup_deadline_s = startup_deadline_s
        self._load_deadline_s = load_deadline_s
        self._workdir = make_workdir()
        self._llm: AsyncLLM | None = None
        self._policy_version = -1
        self._weights: weights.ServedWeights | None = None
        self._staged: tuple[Path, Path] | None = None  # a folder, and what is to be loaded for it
        self._failure: asyncio.Future[str] | None = None  # done once the engine is dead
        self._load_lock = asyncio.Lock()
        self._ids = itertools.count()

    @property
    def policy_version(self) -> int:
        """The version whose weights draw tokens now."""
        return self._policy_version

    @property
    def failure(self) -> str | None:
        """Why the engine is dead, or None."""
        return self._failure.result() if self._failure is not None and self._failure.done() else None

    # Start and stop

    async def start(self, folder: Path, policy_version: int) -> None:
        """Load the model folder and draw one token, so that the first request finds the engine warm."""
        if self._failure is not None:
            raise EngineError("an engine starts once; make a new one")
        self._failure = asyncio.get_running_loop().create_future()
        try:
            self._weights = await asyncio.to_thread(weights.ServedWeights, folder, self._workdir, untie=self._on_cpu)
            prepared = await asyncio.to_thread(self._weights.prepare, folder)
            args = {**self._engine_args, "model": str(prepared)}
            self._llm = await vllm_launch.launch_in_time(args, self._workdir, self._startup_deadline_s)
            self._weights.loaded(prepared)
            self._watch()
            await self._call(self._llm.update_weight_version(str(policy_version)), "label the weights")
            self._policy_version = policy_version
            await self.generate(np.zeros(1, dtype=np.int32), 1, SamplingSettings(max_tokens=1))
        except BaseException:
            await self.stop()
            raise

    def _watch(self) -> None:
        """Notice the end of the engine process at once."""
        assert self._llm is not None
        loop = asyncio.get_running_loop()
        for process in vllm_launch.engine_processes(self._llm):
            loop.add_reader(process.sentinel, self._died, loop, process)

    def _died(self, loop: asyncio.AbstractEventLoop, process: BaseProcess) -> None:
        loop.remove_reader(process.sentinel)
        self._fail(f"its process ended (exit code {process.exitcode})")

    def _fail(self, reason: str) -> None:
        if self._failure is not None and not self._failure.done():
            self._failure.set_result(f"the vLLM engine is dead: {reason}")

    async def stop(self) -> None:
        """End the engine within 5 s; requests still running raise EngineError."""
        self._fail("it was stopped")
        llm, self._llm = self._llm, None
        if llm is not None:
            loop = asyncio.get_running_loop()
            for process in vllm_launch.engine_processes(llm):
                loop.remove_reader(process.sentinel)
            await asyncio.to_thread(vllm_launch.end, llm, STOP_DEADLINE_S)
        shutil.rmtree(self._workdir, ignore_errors=True)

    # Generation

    async def generate(self, prompt_ids: Int32Array, n: int, sampling: SamplingSettings) -> list[Completion]:
        """Draw n completions of the prompt [P]; at temperature 0 n times the same, log-probs at temperature 1."""
        greedy = sampling.temperature == 0
        params = to_params(sampling, 1 if greedy else n)
        request = await self._run(prompt_ids, params)
        outputs: list[Any] = sorted(request.outputs, key=lambda output: output.index)
        if len(outputs) != params.n:
            raise EngineError(f"{request.request_id}: {len(outputs)} completions of {params.n}")
        completions = [to_completion(output, request.request_id) for output in outputs]
        return completions * n if greedy else completions

    async def logprobs(self, token_ids: Int32Array) -> Float32Array:
        """Log-prob of tokens 1..T-1 given those before, temperature 1, from current weights: [T-1].

        The engine draws one more token on the way, so T must be below max_model_len.
        """
        if len(token_ids) < 2:
            return np.zeros(0, dtype=np.float32)
        return probed_logprobs(await self._run(token_ids, probe_params()), token_ids)

    async def _run(self, prompt_ids: Int32Array, params: SamplingParams) -> RequestOutput:
        """Run one request to its end. With final-only output there is one item, holding all completions."""
        llm = self._alive()
        request_id = f"request {next(self._ids)}"
        try:
            items = [item async for item in llm.generate(tokens_input(prompt_ids.tolist()), params, request_id)]
        except EngineDeadError as error:
            self._fail("its process ended or failed")
            raise EngineError(f"{request_id}: {self.failure}{vllm_launch.log_tail(self._workdir)}") from error
        except (EngineGenerateError, VLLMClientError, ValueError) as error:
            raise EngineError(f"{request_id}: {error.__cause__ or error}") from error
        if len(items) != 1 or not items[0].finished:
            raise EngineError(f"{request_id}: the engine returned {len(items)} outputs instead of a finished one")
        return items[0]

    def _alive(self) -> AsyncLLM:
        if self._llm is None or self.failure is not None:
            raise EngineError(self.failure or "the vLLM engine is not started")
        return self._llm

    # Weights

    async def stage(self, folder: Path) -> None:
        """Check the folder and make what is to be loaded for it, while requests go on."""
        self._alive()
        assert self._weights is not None
        self._staged = folder, await asyncio.to_thread(self._weights.prepare, folder)

    async def load(self, folder: Path, policy_version: int) -> float:
        """Replace the weights while requests go on; returns the seconds that generation paused.

        A folder that cannot be served is refused before anything changes. Past that point the switch
        either completes, even when the caller is cancelled, or leaves the engine dead: never half.
        """
        return await asyncio.shield(self._load(folder, policy_version))

    async def _load(self, folder: Path, policy_version: int) -> float:
        async with self._load_lock:
            llm = self._alive()
            if self._staged is None or self._staged[0] != folder:
                await self.stage(folder)
            assert self._weights is not None
            assert self._staged is not None
            (_, prepared), self._staged = self._staged, None
            reload = {"weights_path": str(prepared), "is_checkpoint_format": True}
            started = time.perf_counter()
            await self._switch(
                llm,
                lambda: self._call(llm.collective_rpc("reload_weights", kwargs=reload), "reload the weights"),
                policy_version,
            )
            paused = time.perf_counter() - started
            self._weights.loaded(prepared)
            return paused

    async def receive(
        self, meeting: Meeting, table: Sequence[TensorRow], policy_version: int, receiving: Receiving
    ) -> float:
        """The same with weights that the learner sends over the wire, `receiving` called when it may begin.

        Where they do not arrive the engine lives: it serves on if nothing was touched, else it stands still until
        a `load`. Raises TransferError then.
        """
        return await asyncio.shield(self._receive(meeting, table, policy_version, receiving))

    async def _receive(
        self, meeting: Meeting, table: Sequence[TensorRow], policy_version: int, receiving: Receiving
    ) -> float:
        async with self._load_lock:
            llm = self._alive()
            assert self._weights is not None
            self._weights.check({row.name: row for row in table})
            if meeting.number != self._group:
                await transfer_vllm.join(llm, self._call, meeting)
                self._group = meeting.number
            infos = transfer_vllm.arguments(meeting.kind, table, untie=self._weights.unties)
            started = time.perf_counter()
            try:
                await self._switch(
                    llm, lambda: transfer_vllm.receive(llm, self._call, infos, receiving), policy_version
                )
            except TransferError:
                self._group = None
                raise
            return time.perf_counter() - started

    async def check_tensors(self, folder: Path) -> TensorReport:
        """Compare every worker's tensors with the folder's; requests are served between two pieces."""
        return await check_tensors(self._alive(), self._call, folder)

    async def _switch(
        self, llm: AsyncLLM, replace: Callable[[], Coroutine[Any, Any, Any]], policy_version: int
    ) -> None:
        try:
            await self._call(llm.pause_generation(mode="keep", clear_cache=True), "pause generation")
            await replace()
            if not await self._call(llm.reset_prefix_cache(), "reset the prefix cache"):
                raise EngineError("the prefix cache kept entries of the old weights")
            await self._call(llm.update_weight_version(str(policy_version)), "label the weights")
            self._policy_version = policy_version
            await self._call(llm.resume_generation(), "resume generation")
        except TransferError:
            raise  # the engine lives, and stands still
        except Exception as error:  # vLLM passes worker errors on as bare Exception
            self._fail(f"loading policy_version {policy_version} failed half-way: {error}")
            await asyncio.to_thread(vllm_launch.end, llm, STOP_DEADLINE_S)
            raise EngineError(f"{self.failure}{vllm_launch.log_tail(self._workdir)}") from error

    async def _call(self, call: Coroutine[Any, Any, T], what: str) -> T:
        """Await an engine call, but no longer than the engine lives and the deadline allows."""
        assert self._failure is not None
        task = asyncio.ensure_future(call)
        either: set[asyncio.Future[Any]] = {task, self._failure}
        await asyncio.wait(either, timeout=self._load_deadline_s, return_when=asyncio.FIRST_COMPLETED)
        if task.done() and not isinstance(task.exception(), EngineDeadError):
            return task.result()
        task.cancel()
        if self.failure is not None:
            raise EngineError(f"could not {what}: {self.failure}")
        raise EngineError(f"could not {what} within {self._load_deadline_s} s")
