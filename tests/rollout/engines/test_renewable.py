from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rollout.engines.renewable import RenewableEngine
from rollout.engines.transformers import TransformersEngine
from shared.errors import EngineError
from tests.rollout.engines.models import random_tokens, reference_logprobs, save_versions

pytestmark = pytest.mark.asyncio
TOKENS = random_tokens(12, seed=1)


async def started(folder: Path) -> RenewableEngine:
    engine = RenewableEngine(TransformersEngine(dtype="float32"), lambda: TransformersEngine(dtype="float32"))
    await engine.start(folder, 0)
    return engine


async def test_a_fresh_engine_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    old, new = save_versions(tmp_path, 2, tie=True)
    engine = await started(old)
    await engine.renew(new, 1)
    assert (engine.policy_version, engine.failure) == (1, None)
    np.testing.assert_allclose(await engine.logprobs(TOKENS), reference_logprobs(new, TOKENS), atol=1e-5)
    assert (await engine.check_tensors(new)).wrong == ()
    await engine.stop()
    assert engine.failure is not None


async def test_an_engine_that_cannot_be_replaced_is_dead_and_says_why(tmp_path: Path) -> None:
    [old] = save_versions(tmp_path, 1, tie=True)
    engine = await started(old)
    with pytest.raises(EngineError, match="has no"):
        await engine.renew(tmp_path / "nothing", 1)
    assert engine.failure is not None
    assert "has no" in engine.failure
