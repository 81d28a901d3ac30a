"""The few groups of a step that its ratios hang on, as an operator reads them: text, tokens, log ratios.

Of each step the groups with the largest share of the ratios' sum, and the one with the largest |log ratio|.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from learner.batch import StepBatch
from learner.objective.core import Step
from shared.log import Logger
from shared.types import Group, Trajectory

GROUPS = 2  # of the largest weight share
TOKENS = 1024  # of one group, shared out to its trajectories
PROMPT = 4000  # characters, the last ones
DIGITS = 6
WEIGHT, LOG_RATIO = "largest weight share", "largest |log ratio|"
Array = npt.NDArray[np.float64]


class Decoder:
    """Token ids to text, with the model's own tokenizer; where there is none, ids in angle brackets."""

    def __init__(self, path: str, log: Logger) -> None:
        self._path = path
        self._log = log
        self._tokenizer: Any = None
        self._failed = False
        self.token = lru_cache(maxsize=65_536)(self._token)

    def text(self, ids: npt.NDArray[np.int32]) -> str:
        """What they say together."""
        tokenizer = self._loaded()
        return tokenizer.decode(ids.tolist()) if tokenizer else "".join(f"<{i}>" for i in ids.tolist())

    def _token(self, token_id: int) -> str:
        tokenizer = self._loaded()
        return str(tokenizer.decode([token_id])) if tokenizer else f"<{token_id}>"

    def _loaded(self) -> Any:
        if self._tokenizer is None and not self._failed:
            from transformers import AutoTokenizer

            try:
                self._tokenizer = AutoTokenizer.from_pretrained(self._path)
            except (OSError, ValueError) as error:
                self._failed = True
                self._log.warning("examples show token ids: the tokenizer cannot be loaded", error=str(error))
        return self._tokenizer


def examples_of(step: int, batch: StepBatch, own: Step, decoder: Decoder) -> list[dict[str, Any]]:
    """The step's examples, as JSON can hold them but for numbers that are not finite."""
    log_ratio = own.log_ratio.double().cpu().numpy()
    sequence_of = batch.sequence_of.numpy()
    weight = _weights(np.where(batch.expert.numpy(), -np.inf, log_ratio))
    group_of = batch.group_of.numpy()[sequence_of]
    found = []
    for group, why in chosen(np.where(batch.expert.numpy(), 0.0, log_ratio), weight, group_of).items():
        mine = group_of == group
        told = _Group(batch, group, log_ratio, weight, decoder).told()
        extremes = {
            "weight_share": float(weight[mine].sum()),
            "log_ratio_abs_max": float(np.abs(log_ratio[mine]).max()),
        }
        found.append({"step": step, "why": why} | extremes | told)
    return found


def chosen(log_ratio: Array, weight: Array, group_of: npt.NDArray[np.int64]) -> dict[int, list[str]]:
    """Groups by their place in the step, and why each is shown.

    Args:
        log_ratio: [n], nats; what is not finite counts as the largest there is.
        weight: [n], shares of the sum of all ratios.
        group_of: [n].

    """
    if not len(log_ratio):
        return {}
    shares = np.bincount(group_of, weights=weight)
    why = {int(group): [WEIGHT] for group in np.argsort(-shares, kind="stable")[:GROUPS] if shares[group] > 0}
    farthest = group_of[np.argmax(np.nan_to_num(np.abs(log_ratio), nan=np.inf))]
    why.setdefault(int(farthest), []).append(LOG_RATIO)
    return why


def _weights(log_ratio: Array) -> Array:
    """Each ratio / sum of all; of what is not finite, all of it."""
    finite = np.nan_to_num(log_ratio, nan=1e300, posinf=1e300)
    with np.errstate(over="ignore", under="ignore"):
        weight = np.exp(finite - finite.max(initial=-1e300))
    return np.asarray(weight / max(weight.sum(), 1e-300))


class _Group:
    """One group of a step, in words."""

    def __init__(self, batch: StepBatch, place: int, log_ratio: Array, weight: Array, decoder: Decoder) -> None:
        self._group: Group = batch.groups[place]
        self._first = sum(len(group.trajectories) for group in batch.groups[:place])
        self._sequence_of = batch.sequence_of.numpy()
        self._positions = batch.positions
        self._log_ratio, self._weight, self._decoder = log_ratio, weight, decoder

    def told(self) -> dict[str, Any]:
        group = self._group
        return {
            "group_id": group.group_id,
            "prompt_index": group.prompt_index,
            "server_id": group.server_id,
            "environment": group.environment,
            "lag": group.lag,
            "prompt": self._decoder.text(group.prompt_ids)[-PROMPT:],
            "rewards": [t.reward for t in group.trajectories],
            "trajectories": [self._trajectory(self._first + i, t) for i, t in enumerate(group.trajectories)],
        }

    def _trajectory(self, number: int, t: Trajectory) -> dict[str, Any]:
        mine = self._sequence_of == number
        ratios, weights = np.full(t.length, np.nan), np.zeros(t.length)
        ratios[self._positions[mine]], weights[self._positions[mine]] = self._log_ratio[mine], self._weight[mine]
        start, end = window(weights, max(16, TOKENS // len(self._group.trajectories)))
        return {
            "tokens": [self._decoder.token(i) for i in t.token_ids[start:end].tolist()],
            "log_ratio": [round(d, DIGITS) for d in ratios[start:end].tolist()],
            "start": start,  # tokens of the completion before the first one shown
            "length": t.length,
            "versions": [[s.policy_version, s.start, s.end] for s in t.versions],
            "reward": t.reward,
            "finish_reason": t.finish_reason,
            "weight_share": float(self._weight[mine].sum()),
        }


def window(weights: Array, most: int) -> tuple[int, int]:
    """From where to where at most so many tokens are shown: around the one of the largest weight."""
    length = len(weights)
    if length <= most:
        return 0, length
    start = min(max(0, int(weights.argmax()) - most // 2), length - most)
    return start, start + most
