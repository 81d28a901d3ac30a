"""From sampling settings to vLLM's request parameters, and the probe that reads log-probs of given tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
from vllm.exceptions import VLLMClientError
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from rollout.engines.vllm_output import check_logprobs
from shared.errors import EngineError, SamplingError
from shared.sampling import MIN_TEMPERATURE
from shared.types import Float32Array, Int32Array, SamplingSettings


def to_params(sampling: SamplingSettings, n: int) -> SamplingParams:
    """Parameters for n completions: token ids only, the sampled token's log-prob, one output at the end."""
    if 0 < sampling.temperature < MIN_TEMPERATURE:
        raise SamplingError(
            f"sampling.temperature is {sampling.temperature}; vLLM would draw at {MIN_TEMPERATURE} instead"
        )
    try:
        return SamplingParams(
            n=n,
            temperature=sampling.temperature,
            max_tokens=sampling.max_tokens,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            repetition_penalty=sampling.repetition_penalty,
            stop_token_ids=list(sampling.stop_token_ids),
            ignore_eos=True,  # what stops is in stop_token_ids
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
    except (VLLMClientError, ValueError) as error:
        raise SamplingError(f"vLLM refuses the sampling settings: {error}") from error


def probe_params() -> SamplingParams:
    """Parameters to score a prompt. What a prefix cache holds has no log-probs, so it is not read."""
    return SamplingParams(
        max_tokens=1,
        prompt_logprobs=0,
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        skip_reading_prefix_cache=True,
    )


def probed_logprobs(request: RequestOutput, token_ids: Int32Array) -> Float32Array:
    """Log-probs of tokens 1..T-1 of a scored prompt, [T-1]."""
    found: Any = request.prompt_logprobs
    if found is None or found.token_ids != token_ids[1:].tolist():
        raise EngineError(f"{request.request_id}: the engine did not return one log-prob for every token")
    return check_logprobs(np.array(found.logprobs, dtype=np.float32), request.request_id)
