"""The real vLLM engine on this machine's device. Two engines serve all tests: a tied and an untied model.

The last tests of the file kill and stop them, so the order of the file matters.
"""

from __future__ import annotations

import asyncio
import dataclasses
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import pytest_asyncio
import torch
from safetensors.torch import load_file, save_file

from shared.errors import EngineError, SamplingError
from shared.types import Completion, Int32Array, SamplingSettings, VersionSpan
from tests.rollout.engines.models import random_tokens, reference_logprobs, save_versions

if TYPE_CHECKING:
    from rollout.engines.vllm import VllmEngine

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("default"),  # what vLLM and its dependencies warn of is not ours
]

VERSIONS = 11
TOLERANCE = 1e-3  # nats
SAMPLING = SamplingSettings(temperature=0.7, max_tokens=12)
PROMPT = random_tokens(200, seed=1)  # more than one block of the prefix cache


@dataclasses.dataclass
class Served:
    """A running engine and the versions of its model on disk."""

    engine: VllmEngine
    folders: list[Path]

    @property
    def folder(self) -> Path:
        return self.folders[self.engine.policy_version % VERSIONS]

    async def load_next(self) -> float:
        version = self.engine.policy_version + 1
        return await self.engine.load(self.folders[version % VERSIONS], version)


async def start(root: Path, *, tie: bool) -> Served:
    from rollout.engines.vllm import VllmEngine

    folders = save_versions(root, VERSIONS, tie=tie)
    engine = VllmEngine(dtype="float32", max_model_len=512, max_num_seqs=64, kv_cache_gib=0.25)
    await engine.start(folders[0], 0)
    return Served(engine, folders)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tied(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    served = await start(tmp_path_factory.mktemp("tied"), tie=True)
    yield served
    await served.engine.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def untied(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    served = await start(tmp_path_factory.mktemp("untied"), tie=False)
    yield served
    await served.engine.stop()


def engine_pids() -> list[int]:
    return [c.pid for c in multiprocessing.active_children() if c.pid and c.name.startswith("EngineCore")]


def reference_of(folder: Path, prompt: Int32Array, completion: Completion, temperature: float) -> np.ndarray:
    tokens = np.concatenate([prompt, completion.token_ids])
    return reference_logprobs(folder, tokens, temperature)[len(prompt) - 1 :]


async def check_ten_reloads(served: Served) -> None:
    before = await served.engine.logprobs(PROMPT)
    for _ in range(10):
        await served.load_next()
        now = await served.engine.logprobs(PROMPT)
        assert np.abs(now - before).max() > 0.1
        np.testing.assert_allclose(now, reference_logprobs(served.folder, PROMPT), atol=TOLERANCE)
        for temperature in (0.7, 1.0):
            sampling = dataclasses.replace(SAMPLING, temperature=temperature)
            for completion in await served.engine.generate(PROMPT, 3, sampling):
                assert completion.versions == (VersionSpan(served.engine.policy_version, 0, 12),)
                expected = reference_of(served.folder, PROMPT, completion, temperature)
                np.testing.assert_allclose(completion.behavior_logprobs, expected, atol=TOLERANCE)
        before = now


async def test_after_ten_reloads_of_a_tied_model_all_log_probs_are_those_of_the_new_weights(tied: Served) -> None:
    await check_ten_reloads(tied)


async def test_after_ten_reloads_of_an_untied_model_all_log_probs_are_those_of_the_new_weights(untied: Served) -> None:
    await check_ten_reloads(untied)


async def test_running_requests_go_on_with_the_new_weights_and_every_token_names_its_version(tied: Served) -> None:
    sampling = dataclasses.replace(SAMPLING, max_tokens=480)
    prompt = random_tokens(20, seed=2)
    first = tied.engine.policy_version
    running = asyncio.create_task(tied.engine.generate(prompt, 3, sampling))
    for _ in range(2):
        await asyncio.sleep(0.2)
        assert await tied.load_next() < 2.0
    for completion in await running:
        assert [span.policy_version for span in completion.versions] == [first, first + 1, first + 2]
        assert [s.end for s in completion.versions[:-1]] == [s.start for s in completion.versions[1:]]
        assert (completion.versions[0].start, completion.versions[-1].end) == (0, 480)
        for span in completion.versions:
            drawn = slice(span.start, span.end)
            expected = reference_of(tied.folders[span.policy_version % VERSIONS], prompt, completion, 0.7)[drawn]
            np.testing.assert_allclose(completion.behavior_logprobs[drawn], expected, atol=TOLERANCE)


async def test_many_groups_at_once_come_back_whole_and_in_their_own_words(untied: Served) -> None:
    prompts = [random_tokens(5, seed=seed) for seed in range(32)]
    groups = await asyncio.gather(*(untied.engine.generate(prompt, 8, SAMPLING) for prompt in prompts))
    assert all(len(group) == 8 for group in groups)
    assert len({tuple(c.token_ids.tolist()) for group in groups for c in group}) == 32 * 8
    for prompt, group in zip(prompts[:4], groups[:4], strict=True):
        expected = reference_of(untied.folder, prompt, group[0], 0.7)
        np.testing.assert_allclose(group[0].behavior_logprobs, expected, atol=TOLERANCE)


async def test_temperature_zero_takes_the_most_likely_token_and_a_stop_token_ends_it(untied: Served) -> None:
    greedy = dataclasses.replace(SAMPLING, temperature=0.0)
    first, second = await untied.engine.generate(PROMPT, 2, greedy)
    assert first.token_ids.tolist() == second.token_ids.tolist()
    assert first.finish_reason == "length"
    expected = reference_of(untied.folder, PROMPT, first, 1.0)
    np.testing.assert_allclose(first.behavior_logprobs, expected, atol=TOLERANCE)
    stop = int(first.token_ids[4])
    length = first.token_ids.tolist().index(stop) + 1
    stopping = dataclasses.replace(greedy, stop_token_ids=(stop,))
    (stopped,) = await untied.engine.generate(PROMPT, 1, stopping)
    assert stopped.finish_reason == "stop"
    assert stopped.token_ids.tolist() == first.token_ids[:length].tolist()
    assert len(stopped.behavior_logprobs) == length


async def test_refused_weights_change_nothing(tied: Served, tmp_path: Path) -> None:
    before, version = await tied.engine.logprobs(PROMPT), tied.engine.policy_version
    tensors = load_file(tied.folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(EngineError, match=r"missing: model\.norm\.weight"):
        await tied.engine.load(tmp_path, version + 1)
    with pytest.raises(EngineError, match=r"no \*\.safetensors"):
        await tied.engine.load(tmp_path / "nothing", version + 1)
    assert tied.engine.policy_version == version
    assert tied.engine.failure is None
    np.testing.assert_allclose(await tied.engine.logprobs(PROMPT), before, atol=1e-5)


async def test_weights_that_are_not_numbers_give_an_error_that_names_the_request(
    untied: Served, tmp_path: Path
) -> None:
    tensors = load_file(untied.folder / "model.safetensors")
    save_file({**tensors, "model.norm.weight": torch.full((128,), torch.nan)}, tmp_path / "model.safetensors")
    await untied.engine.load(tmp_path, untied.engine.policy_version + 1)
    with pytest.raises(EngineError, match=r"request \d+"):
        await untied.engine.generate(PROMPT, 2, SAMPLING)
    with pytest.raises(EngineError, match=r"request \d+"):
        await untied.engine.logprobs(PROMPT)
    await untied.load_next()
    await untied.engine.generate(PROMPT, 2, SAMPLING)


async def test_what_the_engine_cannot_do_is_refused_and_the_next_request_is_served(untied: Served) -> None:
    with pytest.raises(EngineError, match="request"):
        await untied.engine.generate(random_tokens(600, seed=0), 1, SAMPLING)
    with pytest.raises(SamplingError, match="temperature"):
        await untied.engine.generate(PROMPT, 1, dataclasses.replace(SAMPLING, temperature=0.001))
    with pytest.raises(SamplingError):
        await untied.engine.generate(PROMPT, 1, dataclasses.replace(SAMPLING, max_tokens=0))
    assert len(await untied.engine.generate(PROMPT, 1, SAMPLING)) == 1


async def test_a_cancelled_request_leaves_the_engine_serving(untied: Served) -> None:
    running = asyncio.create_task(untied.engine.generate(PROMPT, 4, dataclasses.replace(SAMPLING, max_tokens=300)))
    await asyncio.sleep(0.1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert len(await untied.engine.generate(PROMPT, 1, SAMPLING)) == 1


async def test_a_cancelled_load_still_completes(untied: Served) -> None:
    version = untied.engine.policy_version + 1
    loading = asyncio.create_task(untied.load_next())
    await asyncio.sleep(0.01)
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    await untied.engine.load(untied.folders[(version + 1) % VERSIONS], version + 1)
    np.testing.assert_allclose(
        await untied.engine.logprobs(PROMPT), reference_logprobs(untied.folder, PROMPT), atol=TOLERANCE
    )


async def test_when_the_engine_process_is_killed_every_caller_is_told(tied: Served) -> None:
    long = dataclasses.replace(SAMPLING, max_tokens=300)
    running = [asyncio.create_task(tied.engine.generate(PROMPT, 2, long)) for _ in range(3)]
    await asyncio.sleep(0.2)
    os.kill(pid_of(tied), signal.SIGKILL)
    outcomes = await asyncio.wait_for(asyncio.gather(*running, return_exceptions=True), 60)
    for outcome in outcomes:
        assert isinstance(outcome, EngineError)
        assert "dead" in str(outcome)
    for refused in (tied.engine.generate(PROMPT, 1, SAMPLING), tied.load_next(), tied.engine.logprobs(PROMPT)):
        with pytest.raises(EngineError, match="dead"):
            await refused
    assert tied.engine.failure is not None
    await tied.engine.stop()


async def test_stop_ends_the_process_and_whatever_still_runs(untied: Served) -> None:
    running = asyncio.create_task(untied.engine.generate(PROMPT, 2, dataclasses.replace(SAMPLING, max_tokens=300)))
    await asyncio.sleep(0.1)
    await asyncio.wait_for(untied.engine.stop(), 60)
    assert engine_pids() == []
    with pytest.raises(EngineError):
        await running
    await untied.engine.stop()


def pid_of(served: Served) -> int:
    from rollout.engines.vllm_launch import engine_processes

    assert served.engine._llm is not None
    pid = engine_processes(served.engine._llm)[0].pid
    assert pid is not None
    return pid


ORPHAN = """
import asyncio, multiprocessing, pathlib, sys
from rollout.engines.vllm import VllmEngine

async def main():
    engine = VllmEngine(dtype="float32", max_model_len=64, kv_cache_gib=0.1)
    await engine.start(pathlib.Path(sys.argv[1]), 0)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    await asyncio.sleep(600)

if __name__ == "__main__":
    asyncio.run(main())
"""


async def test_the_engine_process_does_not_outlive_a_server_that_was_killed(tmp_path: Path) -> None:
    (folder,) = save_versions(tmp_path, 1, tie=False)
    (tmp_path / "orphan.py").write_text(ORPHAN)
    sockets = tempfile.mkdtemp(prefix="tb-", dir="/tmp")  # the path of a socket has at most 107 bytes
    server = await asyncio.create_subprocess_exec(
        sys.executable,
        tmp_path / "orphan.py",
        folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": sockets},
    )
    assert server.stdout is not None
    pids = [int(pid) for pid in (await asyncio.wait_for(server.stdout.readline(), 120)).split()]
    assert len(pids) == 1
    server.kill()
    await server.wait()
    assert await asyncio.to_thread(is_gone_within, pids[0], 60.0)
    shutil.rmtree(sockets)


def is_gone_within(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    return not Path(f"/proc/{pid}").exists()


async def test_an_engine_that_is_not_ready_in_time_is_killed(tmp_path: Path) -> None:
    from rollout.engines.vllm import VllmEngine

    (folder,) = save_versions(tmp_path, 1, tie=False)
    engine = VllmEngine(dtype="float32", max_model_len=64, kv_cache_gib=0.1, startup_deadline_s=2.0)
    with pytest.raises(EngineError, match=r"not ready after 2\.0 s"):
        await engine.start(folder, 0)
    assert await asyncio.to_thread(no_engine_within, 60.0)


async def test_a_model_that_cannot_be_served_gives_the_reason_from_the_log(tmp_path: Path) -> None:
    from rollout.engines.vllm import VllmEngine

    (folder,) = save_versions(tmp_path, 1, tie=False)
    engine = VllmEngine(dtype="float32", max_model_len=64, kv_cache_gib=1e-6)
    with pytest.raises(EngineError, match="No available memory for the cache blocks"):
        await engine.start(folder, 0)
    assert await asyncio.to_thread(no_engine_within, 60.0)


def no_engine_within(seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while engine_pids() and time.monotonic() < deadline:
        time.sleep(0.1)
    return not engine_pids()
