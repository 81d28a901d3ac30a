"""What an environment is: tokens in, tokens out, as many turns as it takes.

    task(index) ---> prompt_ids ---> policy's turn ---> step(task, transcript) ---> Done(reward, rewards)
                                          ^                      |
                                          `--- Continue(token_ids)

A single question is the case of one turn: `SingleTurn` needs no more than a synchronous `score`. Whatever an
environment raises, and time that runs out, is an `EnvironmentFailure`: infrastructure, never a reward of 0.
"""

from __future__ import annotations

import asyncio
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rollout.environments.failure import Failure
from rollout.environments.threads import Threads
from rollout.environments.transcript import Transcript
from shared.errors import EnvironmentFailure
from shared.types import Int32Array


@dataclass(frozen=True)
class Setup:
    """What every environment is given first; its own `params` follow as keyword arguments."""

    seed: int  # the run's; prompt i is a pure function of (seed, i)
    tokenizer: Any  # the model's own, a transformers tokenizer
    heldout_prompts: int
    deadline_s: float  # for the score of one completion, or one step
    workers: int  # threads that score


@dataclass(frozen=True)
class Task:
    """One prompt, and what the environment needs to go on from it."""

    prompt_ids: Int32Array  # [P]
    data: Any


@dataclass(frozen=True)
class Continue:
    """The environment answers, then the policy has its next turn."""

    token_ids: Int32Array


@dataclass(frozen=True)
class Done:
    """The trajectory is over."""

    reward: float
    rewards: dict[str, float]  # named components


class Environment(ABC):
    """Derive from this for an environment of your own; `environment.path` names the class."""

    name = "environment"

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.threads = Threads(self.name, setup.workers, setup.deadline_s)

    @abstractmethod
    def task(self, index: int) -> Task:
        """Training prompt `index`: a pure function of (setup.seed, index), never one of the held-out ones."""

    @abstractmethod
    def heldout(self, index: int) -> Task:
        """Held-out prompt `index`, below setup.heldout_prompts; the same in every run."""

    @abstractmethod
    async def step(self, task: Task, transcript: Transcript) -> Continue | Done:
        """What follows on the policy's turn. With transcript.finish_reason 'length' only Done may follow.

        Must not block the event loop; see `SingleTurn` for synchronous code.
        """

    def experts(self, task: Task) -> Sequence[Int32Array]:
        """An expert's whole answers, each as a completion [T], end token included; none unless you define it.

        Runs in a thread. An answer is one turn, scored like the policy's own: `step` must say Done on it.
        """
        return ()

    async def act(self, task: Task, transcript: Transcript) -> Continue | Done:
        """`step` by its deadline, its failures translated. Raises EnvironmentFailure."""
        try:
            async with asyncio.timeout(self.setup.deadline_s):
                return checked(await self.step(task, transcript))
        except TimeoutError:
            raise Failure("deadline", f"{self.name}: no answer within {self.setup.deadline_s:g} s") from None
        except EnvironmentFailure:
            raise
        except Exception as error:
            raise Failure("raised", f"{self.name}: {type(error).__name__}: {error}") from error

    async def draw(self, index: int) -> Task:
        """`task` in a thread, by its deadline, its failures translated. Raises EnvironmentFailure."""
        return await self.threads.run(lambda: self.task(index))

    async def draw_heldout(self, index: int) -> Task:
        """`heldout`, likewise."""
        return await self.threads.run(lambda: self.heldout(index))

    async def draw_experts(self, task: Task) -> list[Int32Array]:
        """`experts`, likewise."""
        return await self.threads.run(lambda: [np.asarray(ids, dtype=np.int32) for ids in self.experts(task)])

    async def close(self) -> None:
        """Ends the threads; one that hangs is left behind and does not keep the process."""
        self.threads.close()


class SingleTurn(Environment):
    """One question, one answer, a synchronous score outside the event loop."""

    @abstractmethod
    def score(self, task: Task, completion_ids: Int32Array) -> Done:
        """The reward of one completion [T]; runs in a thread, in several at once."""

    async def step(self, task: Task, transcript: Transcript) -> Done:
        """The score. Its deadline counts from the moment a thread takes it up, not from the queue."""
        return await self.threads.run(lambda: self.score(task, transcript.last_turn))

    async def act(self, task: Task, transcript: Transcript) -> Continue | Done:
        """The threads keep the deadline and translate what the scorer raises."""
        return checked(await self.step(task, transcript))


def checked(answer: object) -> Continue | Done:
    """Refuses answers that would poison training. Raises EnvironmentFailure."""
    if isinstance(answer, Done):
        for name, value in {"reward": answer.reward, **answer.rewards}.items():
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise Failure("answer", f"{name} is {value!r}: a reward must be a finite number")
        return answer
    if not isinstance(answer, Continue):
        raise Failure("answer", f"the environment answered {type(answer).__name__}, not Continue or Done")
    return answer
