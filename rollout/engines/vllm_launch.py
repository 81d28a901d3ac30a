"""Starting and ending vLLM's engine process.

Facts about vLLM 0.32, each seen by running it on two cores with a Qwen3 of 0.5 M parameters:

- The engine process ("VLLM::EngineCore") and its workers share the process group and session of the process
  that starts them.
- When that process is SIGKILLed, vLLM's own engine process does not notice: 20 s later it and its worker
  are still there, idle or not, the worker at 86 % of a core. `GuardedExecutor` ends itself within 1.2 s. Until
  the executor exists (the first 5 s, imports) and with tensor parallelism only the process group helps.
- Start to first token: 56 s as vLLM comes (compiled, engine and worker process), 27 s with `enforce_eager`, 12 s
  as started here. Of these, 5 s are the import of vLLM in this process and 5 s that in the engine process.
- Asked to end, the engine process takes 2 s, and more than 3 with a worker process.
- Two threads in the engine and two in a torch process beside it, on two cores: prompts of 200 tokens took ten
  times as long as with one thread each (OMP_NUM_THREADS=1).
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.logger import configure_logging_if_needed
from vllm.platforms import current_platform
from vllm.utils.system_utils import kill_process_tree
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.executor import Executor
from vllm.v1.executor.uniproc_executor import UniProcExecutor

from shared.errors import EngineError

LOG_FILE = "engine.log"
ENGINE_PROCESS = "EngineCore"
GIB = 2**30
ASK_S = 3.0


class GuardedExecutor(UniProcExecutor):
    """Runs the model inside the engine process, which ends itself when the process that started it is gone.

    On CPU vLLM would put the model into a second process; for one device that costs another import of
    vLLM at start (5 s) and a queue between the two.
    """

    def _init_executor(self) -> None:
        threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()
        if getattr(self.vllm_config.weight_transfer_config, "backend", None) == "gloo":
            from rollout.engines.transfer_gloo import register  # here, since this process makes the worker

            register()
        super()._init_executor()


def _end_with_parent() -> None:
    """Kill this process once its parent is gone, however it went."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    # The sentinel stays open while any process holds a copy of its pipe, so the parent's id is looked at too.
    while os.getppid() == parent.pid and not wait([parent.sentinel], timeout=0.5):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


def device_type() -> str:
    """The device that the installed vLLM drives: "cpu", "cuda", ..."""
    return str(current_platform.device_type)


def launch(engine_args: Mapping[str, Any], workdir: Path, startup_deadline_s: float) -> AsyncLLM:
    """Start the engine process and wait until it is ready. Blocks for seconds to minutes.

    vLLM reads its switches from the environment, here and in the process it starts; they are set for
    the length of this call.
    """
    cpu = device_type() == "cpu"
    args = dict(engine_args)
    if args["tensor_parallel_size"] == 1:
        args["distributed_executor_backend"] = GuardedExecutor
    with _environment(_switches(workdir, startup_deadline_s, eager=cpu and args["enforce_eager"])):
        parsed = AsyncEngineArgs(**args)
        configure_logging_if_needed(parsed.create_logging_config())
        config = parsed.create_engine_config()
        return AsyncLLM(
            vllm_config=config,
            executor_class=Executor.get_class(config),
            log_stats=False,
            log_requests=False,
        )


def _switches(workdir: Path, startup_deadline_s: float, eager: bool) -> dict[str, str]:
    switches = {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",  # the model is a local folder
        "VLLM_HOST_IP": "127.0.0.1",  # else vLLM finds its address by a route to a public one
        "VLLM_ENGINE_READY_TIMEOUT_S": str(int(startup_deadline_s)),
        "VLLM_LOGGING_CONFIG_PATH": str(_write_log_config(workdir)),
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "PYTHONWARNINGS": "ignore::FutureWarning",
        "TMPDIR": str(workdir),  # a killed engine leaves files behind: where they are removed
        # All cores by default: the model's threads would then fight with this process over one of them.
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, len(os.sched_getaffinity(0)) - 1)),
        "VLLM_LOGGING_LEVEL": "ERROR",  # what it says before it has read that file
    }
    if eager:
        # `enforce_eager` leaves one torch.compile in the sampler: 10 s and a C++ compiler at the first token.
        switches["TORCHDYNAMO_DISABLE"] = "1"
    return switches


def _write_log_config(workdir: Path) -> Path:
    """Errors of vLLM go to a file, which the message of a failure quotes; the rest is not kept."""
    config = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"format": "%(asctime)s %(processName)s %(levelname)s %(message)s"}},
        "handlers": {
            "file": {
                "class": "logging.FileHandler",
                "filename": str(workdir / LOG_FILE),
                "formatter": "line",
                "level": "ERROR",
            }
        },
        "loggers": {"vllm": {"handlers": ["file"], "level": "ERROR", "propagate": False}},
    }
    path = workdir / "logging.json"
    path.write_text(json.dumps(config))
    return path


def log_tail(workdir: Path, lines: int = 15) -> str:
    """The end of the engine's log, to be put behind the message of a failure."""
    try:
        text = (workdir / LOG_FILE).read_text(errors="replace")
    except OSError:
        return ""
    tail = "\n".join(text.splitlines()[-lines:])
    return f"; the end of its log:\n{tail}" if tail else ""


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables and put the whole environment back: vLLM itself leaves LD_PRELOAD and others behind."""
    before = dict(os.environ)
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # would overrule the engine's kv_cache_gib
    os.environ.update(values)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def engine_processes(llm: AsyncLLM) -> list[BaseProcess]:
    """The processes that vLLM started for this engine (workers below them not included)."""
    manager = llm.engine_core.resources.engine_manager
    if manager is None:
        raise EngineError("vLLM started no engine process of its own")
    return list(manager.processes)


def running_engines() -> list[BaseProcess]:
    """Engine processes that this process has started and that still run."""
    return [c for c in multiprocessing.active_children() if c.name.startswith(ENGINE_PROCESS)]


def end(llm: AsyncLLM, deadline_s: float) -> None:
    """End the engine within the deadline. Asked first: killed, it leaves a semaphore to complain of."""
    processes = engine_processes(llm)
    llm.shutdown(timeout=ASK_S)
    kill(processes, deadline_s - ASK_S)


def kill(processes: Sequence[BaseProcess], deadline_s: float) -> None:
    """SIGKILL the processes and those below them, and wait for them to be gone."""
    deadline = time.monotonic() + deadline_s
    for process in processes:
        if process.is_alive() and process.pid is not None:
            kill_process_tree(process.pid)
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))


async def launch_in_time(engine_args: Mapping[str, Any], workdir: Path, deadline_s: float) -> AsyncLLM:
    """`launch` beside the event loop; an engine process that is not ready in time is killed.

    Raises:
        EngineError: with the end of vLLM's log.
    """
    before = running_engines()
    task = asyncio.create_task(asyncio.to_thread(launch, engine_args, workdir, deadline_s))
    try:
        await asyncio.wait({task}, timeout=deadline_s)
    finally:
        if not task.done():
            task.add_done_callback(_drop_late)
            kill([process for process in running_engines() if process not in before], deadline_s=1.0)
    if not task.done():
        raise EngineError(f"vLLM was not ready after {deadline_s} s{log_tail(workdir)}")
    try:
        return task.result()
    except Exception as error:  # whatever vLLM raises: settings, memory, the model's code
        raise EngineError(f"vLLM did not start: {error}{log_tail(workdir)}") from error


def _drop_late(task: asyncio.Task[AsyncLLM]) -> None:
    """An engine that was given up: its failure is of no interest, its success must not run on."""
    if not task.cancelled() and task.exception() is None:
        task.result().shutdown(timeout=0)
