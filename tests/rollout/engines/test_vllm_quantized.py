"""vLLM with weights of 8 bits: quantized anew at every version, close to the published weights and not equal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.rollout.engines.models import random_tokens, reference_logprobs, save_versions

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.asyncio,
    pytest.mark.filterwarnings("default"),  # what vLLM and its dependencies warn of is not ours
]


async def test_a_reload_quantizes_the_new_weights(tmp_path: Path) -> None:
    from rollout.engines.vllm import VllmEngine

    folders = save_versions(tmp_path, 2, tie=False, noise=0.02)
    engine = VllmEngine(
        dtype="bfloat16", quantization="fp8_per_channel", max_model_len=64, max_num_seqs=16, kv_cache_gib=0.1
    )
    sequence = random_tokens(24, 1)
    try:
        await engine.start(folders[0], 0)
        answers = []
        for version, folder in enumerate(folders):
            if version:
                await engine.load(folder, version)
            answers.append((await engine.logprobs(sequence), reference_logprobs(folder, sequence)))
        report = await engine.check_tensors(folders[1])
    finally:
        await engine.stop()
    floors = [float(np.abs(found - truth).max()) for found, truth in answers]
    moved = float(np.abs(answers[1][1] - answers[0][1]).max())
    assert 1e-3 < max(floors) < moved / 2, "nearer to each version's weights than the versions are to each other"
    assert not report.wrong
    assert {name.rpartition(".")[2] for name in report.unchecked} == {"weight", "weight_scale"}
