"""What vLLM has loaded against what was published, at learning rate 1e-6. One engine serves all tests.

It serves a tied model as it is, not as an untied copy, so that a reload leaves the packed output layer behind: what
users of vLLM on CPU meet (pitfall: every file checksum is right, log-probs are not).
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from safetensors.torch import load_file, save_file

from rollout.admit import Admitter
from rollout.moments import moment
from shared.config import Config
from shared.lag import Asked
from shared.types import Completion, SamplingSettings
from tests.rollout.engines.models import random_tokens, save_versions
from tests.rollout.run import Run, parts_of, small, until

if TYPE_CHECKING:
    from rollout.engines.vllm import VllmEngine

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("default"),  # what vLLM and its dependencies warn of is not ours
]

TENSORS = 27  # of three layers, as vLLM keeps them: q, k and v side by side, gate and up too
STALE = {"lm_head.weight"}


@dataclasses.dataclass
class Served:
    """The engine, and the versions of its model on disk, each about one step of learning rate 1e-6 after the other."""

    engine: VllmEngine
    folders: list[Path]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    from rollout.engines.vllm import VllmEngine

    folders = save_versions(tmp_path_factory.mktemp("tied"), 3, tie=True, noise=1e-6)
    engine = VllmEngine(dtype="float32", max_model_len=256, max_num_seqs=16, kv_cache_gib=0.1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rollout.engines.weights.is_tied", lambda folder: False)
        await engine.start(folders[0], 0)
    yield Served(engine, folders)
    await engine.stop()


async def test_every_tensor_that_was_loaded_at_the_start_is_the_published_one(served: Served) -> None:
    report = await served.engine.check_tensors(served.folders[0])
    assert (report.wrong, report.unchecked, report.checked) == ((), (), TENSORS)
    assert report.checked_bytes > 2_000_000


async def test_a_reload_that_did_nothing_is_seen_in_every_tensor(served: Served) -> None:
    report = await served.engine.check_tensors(served.folders[1])
    assert (len(report.wrong), report.checked) == (TENSORS, 0)


async def test_the_output_layer_that_a_reload_leaves_behind_is_seen(served: Served) -> None:
    await served.engine.load(served.folders[1], 1)
    report = await served.engine.check_tensors(served.folders[1])
    assert (set(report.wrong), report.checked) == (STALE, TENSORS - 1)


async def test_exchanged_and_stale_tensors_are_seen_also_where_vllm_packs_them(served: Served, tmp_path: Path) -> None:
    old, new = (load_file(folder / "model.safetensors") for folder in served.folders[1:])
    layers = [f"model.layers.{layer}" for layer in (0, 1)]
    wrong = dict(new)
    for name in ("self_attn.k_proj.weight", "post_attention_layernorm.weight"):
        first, second = (f"{layer}.{name}" for layer in layers)
        wrong[first], wrong[second] = new[second], new[first]
    wrong["model.layers.2.mlp.up_proj.weight"] = old["model.layers.2.mlp.up_proj.weight"]
    save_file(wrong, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_bytes((served.folders[2] / "config.json").read_bytes())
    await served.engine.load(tmp_path, 2)
    report = await served.engine.check_tensors(served.folders[2])
    changed = {
        f"{layer}.{name}.weight" for layer in layers for name in ("self_attn.qkv_proj", "post_attention_layernorm")
    }
    assert set(report.wrong) == {*changed, "model.layers.2.mlp.gate_up_proj.weight", *STALE}


async def test_a_drain_lets_completions_end_before_the_weights_change(served: Served, config: Config) -> None:
    run = Run(small(config, served.folders[0], "rollout.sync=drain"))
    run.publish()
    parts = parts_of(run.config)
    sampling = SamplingSettings(temperature=0.7, max_tokens=150)
    drawn: list[Completion] = []

    async def generate(index: int, asked: Asked) -> None:
        drawn.extend(await served.engine.generate(random_tokens(8, index), 2, sampling))

    admitter = Admitter(parts, lambda: 0, Asked, generate)
    admitting = asyncio.ensure_future(admitter.run())
    await until(lambda: run.leased() > 0, "groups in flight", admitting)
    async with moment(parts, admitter):
        before = len(drawn)
        await served.engine.load(served.folders[1], 7)
    await until(lambda: len(drawn) == 16, "eight groups, for which there is credit", admitting, 60)
    admitting.cancel()
    await admitter.stop(0)
    assert before == 8
    assert [[span.policy_version for span in c.versions] for c in drawn] == [[2]] * 8 + [[7]] * 8
