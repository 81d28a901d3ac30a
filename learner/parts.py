"""A step in parts: its statistics by staleness, environment, rollout server, position in the completion and arm."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learner.batch import Int64Array, StepBatch
from learner.objective.staleness import bucket_name, staleness_bucket
from learner.objective.statistics import RatioStatistics, by_key
from learner.staleness import arm_of
from learner.step import StepOutcome
from shared.records import MOST_LABELS, OTHERS

PART_FIELDS = (
    "tokens",
    "token_ess",
    "sequence_ess",
    "ratio_p50",
    "ratio_max",
    "top_1_percent_mass",
    "kl",
    "capped_share",
)
POSITIONS = (16, 64, 256, 1024)  # where a bucket of positions in the completion begins
POSITION_NAMES = ("0-15", "16-63", "64-255", "256-1023", "1024+")

Numbers = dict[str, float]


class Parted:
    """The tokens of a step that the policy drew, in parts."""

    def __init__(self, batch: StepBatch, outcome: StepOutcome) -> None:
        self._batch = batch
        self._outcome = outcome
        self._own = outcome.own.drawn()
        self._mine = slice(None) if outcome.own.expert is None else ~outcome.own.expert

    def parts(self, staleness: Int64Array) -> dict[str, Any]:
        """All of them, by the names of their fields; staleness is [n], versions."""
        groups, drawn = self._batch.groups, ~self._batch.expert.numpy()
        positions = torch.from_numpy(self._batch.positions[drawn])
        bucket_of = torch.bucketize(positions, torch.tensor(POSITIONS), right=True)
        return {
            "by_staleness": self._by(staleness_bucket(torch.from_numpy(staleness)), bucket_name),
            "by_environment": self._by(*self._of_groups(bounded([group.environment for group in groups]))),
            "by_server": self._by(*self._of_groups(bounded([group.server_id for group in groups]))),
            "by_position": self._by(bucket_of, POSITION_NAMES.__getitem__),
            "by_arm": self._arms(staleness),
        }

    def _by(self, key_of: Tensor, name_of: Callable[[int], str]) -> dict[str, Numbers]:
        """The statistics of every key's tokens, by the key's name."""
        keys = key_of.unique().tolist()
        if len(keys) == 1:
            return {name_of(keys[0]): dict(self._undivided)}
        return {name_of(key): self._numbers(part) for key, part in self._divided(key_of).items()}

    @cached_property
    def _undivided(self) -> Numbers:
        """Of a part that all tokens are in, whatever it is of."""
        return self._numbers(self._divided(torch.zeros_like(self._own.sequence_of))[0])

    def _divided(self, key_of: Tensor) -> dict[int, RatioStatistics]:
        own, outcome = self._own, self._outcome
        return by_key(
            own.log_ratio,
            own.sequence_of,
            own.sequences,
            key_of.to(own.sequence_of.device),
            weight=outcome.weight[self._mine],
            cut=outcome.cut[self._mine],
        )

    def _numbers(self, part: RatioStatistics) -> Numbers:
        summary = part.summary()
        shown = {name: getattr(summary, name) for name in PART_FIELDS}
        return shown | {"weight_share": part.weight_share(self._outcome.statistics)}

    def _of_groups(self, labels: Sequence[str]) -> tuple[Tensor, Callable[[int], str]]:
        """The number of the label of each token's group, and what it is called."""
        names = sorted(set(labels))
        number = torch.tensor([names.index(label) for label in labels], device=self._own.group_of.device)
        return number[self._own.group_of][self._own.sequence_of], names.__getitem__

    def _arms(self, staleness: Int64Array) -> dict[str, dict[str, Any]]:
        """Ratios, rewards, lengths and staleness of every arm."""
        labels = [arm_of(group) for group in self._batch.groups]
        key_of, name_of = self._of_groups(labels)
        found = self._by(key_of, name_of)
        where = key_of.cpu().numpy()
        trajectories, batch = self._batch.drawn, self._batch
        arm = np.array(labels)[batch.group_of.numpy()[batch.own]]
        rewards, lengths = (
            np.array(values) for values in zip(*((t.reward, t.length) for t in trajectories), strict=True)
        )
        for key, name in enumerate(sorted(found)):
            mine = arm == name
            found[name] |= {
                "groups": labels.count(name),
                "trajectories": int(mine.sum()),
                "reward_mean": float(rewards[mine].mean()),
                "length_mean": float(lengths[mine].mean()),
                "staleness_mean": float(staleness[where == key].mean()),
            }
        return found


def bounded(labels: Sequence[str]) -> list[str]:
    """The label of each group; beyond MOST_LABELS of them, those of the fewest groups are OTHERS."""
    counts = Counter(labels)
    named = sorted(counts, key=lambda label: (-counts[label], label))[:MOST_LABELS]
    return [label if label in named else OTHERS for label in labels]
