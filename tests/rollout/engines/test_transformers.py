import asyncio
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rollout.engines.transformers import TransformersEngine, draw
from shared.errors import EngineError, SamplingError
from shared.types import Completion, SamplingSettings, VersionSpan
from tests.rollout.engines.models import random_tokens, reference_logprobs, save_versions

PROMPT = random_tokens(9, seed=1)
SAMPLING = SamplingSettings(temperature=0.7, max_tokens=12)


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return save_versions(tmp_path_factory.mktemp("models"), 2, tie=request.param)


async def started(folder: Path, seed: int = 0) -> TransformersEngine:
    engine = TransformersEngine(dtype="float32", max_model_len=64, seed=seed)
    await engine.start(folder, 3)
    return engine


def check_against(folder: Path, completion: Completion, temperature: float) -> None:
    tokens = np.concatenate([PROMPT, completion.token_ids])
    expected = reference_logprobs(folder, tokens, temperature)[len(PROMPT) - 1 :]
    np.testing.assert_allclose(completion.behavior_logprobs, expected, atol=1e-4)


@pytest.mark.asyncio
async def test_log_probs_are_those_of_the_temperature_that_drew_before_and_after_a_load(folders: list[Path]) -> None:
    engine = await started(folders[0])
    tokens = random_tokens(30, seed=2)
    for version, folder in ((3, folders[0]), (4, folders[1])):
        if version != engine.policy_version:
            await engine.load(folder, version)
        for temperature in (0.7, 1.0):
            for completion in await engine.generate(PROMPT, 4, dataclasses.replace(SAMPLING, temperature=temperature)):
                assert completion.versions == (VersionSpan(version, 0, len(completion.token_ids)),)
                check_against(folder, completion, temperature)
        np.testing.assert_allclose(await engine.logprobs(tokens), reference_logprobs(folder, tokens), atol=1e-4)
    changed = np.abs(reference_logprobs(folders[0], tokens) - reference_logprobs(folders[1], tokens)).max()
    assert changed > 0.1
    await engine.stop()


@pytest.mark.asyncio
async def test_the_same_seed_draws_the_same_and_another_draws_otherwise(folders: list[Path]) -> None:
    drawn = []
    for seed in (5, 5, 6):
        engine = await started(folders[0], seed)
        drawn.append([c.token_ids.tolist() for c in await engine.generate(PROMPT, 4, SAMPLING)])
        await engine.stop()
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]
    assert len({tuple(tokens) for tokens in drawn[0]}) == 4


@pytest.mark.asyncio
async def test_a_completion_ends_with_its_stop_token_and_without_padding(folders: list[Path]) -> None:
    engine = await started(folders[0])
    stops = tuple(range(0, 512, 4))
    sampling = dataclasses.replace(SAMPLING, stop_token_ids=stops, max_tokens=6)
    completions = await engine.generate(PROMPT, 32, sampling)
    assert {c.finish_reason for c in completions} == {"stop", "length"}
    for completion in completions:
        stopped = completion.finish_reason == "stop"
        assert [token in stops for token in completion.token_ids] == [False] * (len(completion.token_ids) - 1) + [
            stopped
        ]
        assert stopped or len(completion.token_ids) == 6
        check_against(folders[0], completion, 0.7)
    await engine.stop()


@pytest.mark.asyncio
async def test_temperature_zero_takes_the_most_likely_token_every_time(folders: list[Path]) -> None:
    engine = await started(folders[0])
    first, second = await engine.generate(PROMPT, 2, dataclasses.replace(SAMPLING, temperature=0.0))
    assert first.token_ids.tolist() == second.token_ids.tolist()
    check_against(folders[0], first, 1.0)
    await engine.stop()


@pytest.mark.asyncio
async def test_requests_at_once_take_turns_and_a_full_context_ends_with_length(folders: list[Path]) -> None:
    engine = await started(folders[0])
    long = dataclasses.replace(SAMPLING, max_tokens=1000)
    groups = await asyncio.gather(*(engine.generate(PROMPT, 2, long) for _ in range(3)))
    assert {len(c.token_ids) for group in groups for c in group} == {64 - len(PROMPT)}
    assert {c.finish_reason for group in groups for c in group} == {"length"}
    await engine.stop()


@pytest.mark.asyncio
async def test_weights_that_do_not_fit_are_refused_and_the_old_ones_stay(folders: list[Path], tmp_path: Path) -> None:
    engine = await started(folders[0])
    tensors = load_file(folders[1] / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    before = await engine.logprobs(PROMPT)
    with pytest.raises(EngineError, match=r"model\.norm\.weight"):
        await engine.load(tmp_path, 4)
    assert engine.policy_version == 3
    assert engine.failure is None
    np.testing.assert_array_equal(await engine.logprobs(PROMPT), before)
    await engine.stop()


@pytest.mark.asyncio
async def test_weights_that_are_not_numbers_give_an_error_and_no_completion(
    folders: list[Path], tmp_path: Path
) -> None:
    engine = await started(folders[0])
    tensors = load_file(folders[1] / "model.safetensors")
    save_file({**tensors, "model.norm.weight": torch.full((128,), torch.nan)}, tmp_path / "model.safetensors")
    await engine.load(tmp_path, 4)
    with pytest.raises(EngineError, match="not finite"):
        await engine.generate(PROMPT, 2, SAMPLING)
    with pytest.raises(EngineError, match="not finite"):
        await engine.logprobs(PROMPT)
    await engine.stop()


@pytest.mark.asyncio
async def test_filters_that_this_engine_does_not_have_are_refused(folders: list[Path]) -> None:
    engine = TransformersEngine()
    with pytest.raises(SamplingError, match="top_p"):
        await engine.generate(PROMPT, 1, dataclasses.replace(SAMPLING, top_p=0.9))


@pytest.mark.asyncio
async def test_an_engine_that_is_not_running_says_so() -> None:
    engine = TransformersEngine()
    with pytest.raises(EngineError, match="not started"):
        await engine.generate(PROMPT, 1, SAMPLING)
    await engine.stop()
    with pytest.raises(EngineError, match="stopped"):
        await engine.generate(PROMPT, 1, SAMPLING)


def test_drawn_tokens_follow_the_distribution_whose_log_probs_are_returned() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).expand(20_000, -1)
    tokens, logprobs = draw(logits, 0.7, torch.Generator().manual_seed(0))
    expected = (logits[0] / 0.7).log_softmax(-1)
    shares = torch.bincount(tokens, minlength=4) / len(tokens)
    torch.testing.assert_close(shares, expected.exp(), atol=0.015, rtol=0)
    torch.testing.assert_close(logprobs, expected[tokens])
