from __future__ import annotations

import pytest
import torch

from rollout.engines.transformers import TransformersEngine
from rollout.factory import build_engine
from shared.config import load_config
from shared.errors import EngineError


def test_the_engine_is_the_configured_one_on_the_device_that_there_is() -> None:
    engine, device = build_engine(load_config(None, ["rollout.engine.kind=transformers"], {}), "r0")
    assert isinstance(engine, TransformersEngine)
    assert device == ("cuda" if torch.cuda.is_available() else "cpu")


def test_the_engine_computes_in_the_published_precision_unless_another_one_is_configured() -> None:
    kind = "rollout.engine.kind=transformers"
    assert load_config(None, [kind, "model.dtype=bfloat16"], {}).engine_dtype == "bfloat16"
    assert load_config(None, [kind, "rollout.engine.dtype=bfloat16"], {}).engine_dtype == "bfloat16"
    assert load_config(None, [kind], {}).engine_dtype == "float32"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    config = load_config(None, ["rollout.engine.kind=transformers", "rollout.engine.device=cuda"], {})
    with pytest.raises(EngineError, match=r"rollout.engine.device is 'cuda', but torch finds no GPU"):
        build_engine(config, "r0")
