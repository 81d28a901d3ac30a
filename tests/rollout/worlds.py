"""Environments of the tests, reached by their import path as a user's own would be."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import numpy as np

from rollout.environments.base import Continue, Done, Environment, Setup, SingleTurn, Task
from rollout.environments.transcript import Transcript
from shared.types import Int32Array

HELDOUT = 1_000_000


class Parity(SingleTurn):
    """Worth 1 where the first token is even."""

    name = "parity"

    def task(self, index: int) -> Task:
        return Task(np.asarray([10, 11, index % 200], dtype=np.int32), index)

    def heldout(self, index: int) -> Task:
        return self.task(HELDOUT + index)

    def score(self, task: Task, completion_ids: Int32Array) -> Done:
        even = float(completion_ids[0] % 2 == 0)
        return Done(even, {"even": even})


class Shade(Parity):
    """Worth the first token's number: completions of a group are hardly ever worth the same, so every step moves."""

    name = "shade"

    def score(self, task: Task, completion_ids: Int32Array) -> Done:
        return Done(int(completion_ids[0]) / 258, {})


class Taught(Parity):
    """Has an expert, who answers with each of `answers`; nothing at all to prompt 3."""

    def __init__(self, setup: Setup, answers: Sequence[Sequence[int]] = ((2, 257), (4, 6, 257))) -> None:
        super().__init__(setup)
        self._answers = answers

    def experts(self, task: Task) -> list[Int32Array]:
        return [np.asarray(ids, dtype=np.int32) for ids in self._answers if task.data != 3]


class Failing(Parity):
    """Its scorer raises for the prompts named in `broken`."""

    def __init__(self, setup: Setup, broken: tuple[int, ...] = ()) -> None:
        super().__init__(setup)
        self._broken = set(broken)

    def score(self, task: Task, completion_ids: Int32Array) -> Done:
        if task.data in self._broken:
            raise ZeroDivisionError("the scorer is broken")
        return super().score(task, completion_ids)


class Hanging(Parity):
    """Its scorer never answers until `release` is set."""

    release = threading.Event()

    def score(self, task: Task, completion_ids: Int32Array) -> Done:
        self.release.wait(30)
        return super().score(task, completion_ids)


class Odd(Parity):
    """Prompt 2 is empty, which no engine takes; prompt 5 cannot be made."""

    def task(self, index: int) -> Task:
        if index == 5:
            raise LookupError("no such question")
        return Task(np.zeros(0, dtype=np.int32), index) if index == 2 else super().task(index)


class TwoTurns(Environment):
    """Asks back once with tokens 1, 2, 3; the reward is the number of the policy's tokens."""

    name = "two-turns"
    question = np.asarray([1, 2, 3], dtype=np.int32)

    def task(self, index: int) -> Task:
        return Task(np.asarray([10, index], dtype=np.int32), index)

    def heldout(self, index: int) -> Task:
        return self.task(HELDOUT + index)

    async def step(self, task: Task, transcript: Transcript) -> Continue | Done:
        await asyncio.sleep(0)
        if len(transcript.turns) == 1 and transcript.finish_reason != "length":
            return Continue(self.question)
        spoken = float(sum(turn.stop - turn.start for turn in transcript.turns))
        return Done(spoken, {"spoken": spoken})


class Patient(TwoTurns):
    """As TwoTurns, but the second turn of prompt 0 begins only when `release` is set."""

    release = threading.Event()

    def task(self, index: int) -> Task:
        return Task(np.asarray([10, index % 200], dtype=np.int32), index)

    async def step(self, task: Task, transcript: Transcript) -> Continue | Done:
        if task.data == 0:
            await asyncio.to_thread(self.release.wait, 30)
        return await super().step(task, transcript)


class Unfinished(Environment):
    """Lacks `step` and `heldout`."""

    def task(self, index: int) -> Task:
        return Task(np.zeros(1, dtype=np.int32), index)


class Careless(Parity):
    """Does not pass the setup on."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup


class NotAnEnvironment:
    """Any class."""
