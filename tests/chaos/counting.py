"""The real learner with a model that counts: `python -m tests.chaos.counting --config FILE`.

Only the model and its optimizer are swapped. The model has one counter for every prompt index, and a log-prob whose
value is always -1 nat while its gradient makes every group add exactly 1 to its own counter: with plain SGD at
learning rate 1, REINFORCE over the tokens' mean and group_mean advantages,

    d counter[i] = sum over the group's tokens (1/n) A_t scale [token = 1] = (G T / 2) (1/n) (1/2) scale = 1

for scale = 4 groups_per_step, n = groups_per_step G T. With powers of two all of it is exact, up to 2^24.
Counters in a checkpoint therefore tell from outside how often each group was applied.

Two environment variables: TRUSTBATCH_CHAOS_KILL="point:k" ends the process by SIGKILL at the k-th passing of a
named point; TRUSTBATCH_CHAOS_STEPS names a file that gets a line (time, groups) for every optimizer step.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

import learner.step
from learner.__main__ import main
from learner.batch import MicroBatch
from learner.head import TokenOutputs
from learner.model import Dtype, PolicyModel
from learner.model_files import ModelFiles
from shared.control import ControlState
from shared.manifest import MANIFEST
from shared.stream import GroupReader

KILL, STEPS = "TRUSTBATCH_CHAOS_KILL", "TRUSTBATCH_CHAOS_STEPS"
BASE, PROMPT_TOKENS = 256, 4
POINTS = (
    "before_step",
    "after_step",
    "before_publish",
    "after_publish",
    "before_announce",
    "after_announce",
    "during_checkpoint",
    "before_checkpoint",
    "after_checkpoint",
    "before_delete",
    "after_delete",
)

_passed: Counter[str] = Counter()


def point(name: str) -> None:
    """Ends the process here if that is what was asked for."""
    _passed[name] += 1
    if os.environ.get(KILL) == f"{name}:{_passed[name]}":
        os.kill(os.getpid(), signal.SIGKILL)


class CountingPolicy(PolicyModel):
    """One counter for every prompt index. The folder's counters.json says how many."""

    scale = 0.0

    def __init__(self, counters: int) -> None:
        module: Any = torch.nn.Module()
        module.counters = torch.nn.Parameter(torch.zeros(counters))
        module.config = SimpleNamespace()
        module.set_attn_implementation = lambda _: None
        super().__init__(module)

    @classmethod
    def load(
        cls, path: str, dtype: Dtype, device: torch.device, *, matrices: Dtype = "float32", key: str = "model.path"
    ) -> PolicyModel:
        return CountingPolicy(int(json.loads((Path(path) / "counters.json").read_text())))

    @property
    def vocab_size(self) -> int:
        return BASE

    def outputs(self, batch: MicroBatch, *, entropy: bool = False, known: TokenOutputs | None = None) -> TokenOutputs:
        digits = torch.tensor([BASE**digit for digit in range(PROMPT_TOKENS)])
        prompts = [slice(one.prompt_at, one.prompt_at + PROMPT_TOKENS) for one in batch.packed.placed]
        index = torch.stack([(batch.packed.ids[prompt] * digits).sum() for prompt in prompts])
        counter = self.module.counters[index[batch.sequence_of.unique_consecutive(return_inverse=True)[1]]]
        rewarded = batch.tokens.float()
        return TokenOutputs(-1 + self.scale * rewarded * (counter - counter.detach()), None)

    def sequence_logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        return [[-1.0] * (len(sequence) - 1) for sequence in sequences]

    @cached_property
    def files(self) -> ModelFiles:
        return CountingFiles(self.module, self.dtype)


class CountingFiles(ModelFiles):
    """Of a module that transformers does not know."""

    others: dict[str, bytes] = {}  # noqa: RUF012

    def tensors(self) -> dict[str, Tensor]:
        return {"counters": self._module.counters}


class CountingSGD(torch.optim.SGD):
    """Plain SGD that passes the points before and after a step, and says which groups a step applied."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        point("before_step")
        groups = sum(int((p.grad != 0).sum()) for group in self.param_groups for p in group["params"])
        super().step(closure)
        if STEPS in os.environ:
            with Path(os.environ[STEPS]).open("a") as file:
                file.write(f"{time.time()} {groups}\n")
        point("after_step")


def _around(owner: Any, method: str, before: str, after: str, counts: Callable[..., bool]) -> None:
    """Passes a point before and after every call of a method that counts."""
    original = getattr(owner, method)

    def wrapped(self: Any, *arguments: Any, **named: Any) -> Any:
        counted = counts(self, *arguments)
        if counted and before:
            point(before)
        result = original(self, *arguments, **named)
        if counted and after:
            point(after)
        return result

    setattr(owner, method, wrapped)


def _manifest_of(folder: str) -> Callable[..., bool]:
    return lambda path, *_: path.name == f"{MANIFEST}.partial" and path.parent.parent.name == folder


def swap() -> None:
    """Puts the counting model in, and the points around what the learner calls."""
    PolicyModel.load = CountingPolicy.load  # type: ignore[method-assign]

    def make(policy: PolicyModel, config: Any) -> CountingSGD:
        CountingPolicy.scale = 4.0 * config.groups_per_batch / config.minibatches
        return CountingSGD(policy.named_parameters().values(), lr=1.0)

    learner.step.make_optimizer = make
    _around(Path, "replace", "before_publish", "after_publish", _manifest_of("policy"))
    _around(Path, "replace", "before_checkpoint", "after_checkpoint", _manifest_of("checkpoints"))
    _around(Path, "replace", "during_checkpoint", "", lambda path, *_: path.name == "state.json.partial")
    _around(ControlState, "announce", "before_announce", "after_announce", lambda *_: True)
    _around(GroupReader, "delete", "before_delete", "after_delete", lambda _, entry_ids: bool(entry_ids))


def counters_of(file: Path) -> Tensor:
    """The counters in a checkpoint's or a published version's model file."""
    from safetensors.torch import load_file

    return load_file(file)["counters"]


if __name__ == "__main__":
    swap()
    sys.exit(main())
