"""Tasks of reasoning-gym: one question, one answer, the task's own scorer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rollout.environments.base import Done, Setup, SingleTurn, Task
from rollout.environments.questions import Question, Questions
from rollout.tokens import chat_prompt, completion_ids
from shared.types import Int32Array

END_OF_THOUGHT = "</think>"
ANSWER_TAG = "<answer>"


class ReasoningGym(SingleTurn):
    """A dataset of reasoning-gym by its name."""

    def __init__(
        self,
        setup: Setup,
        dataset: str,
        params: Mapping[str, Any] | None = None,
        system_prompt: str = "",
        chat_template: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = f"reasoning_gym/{dataset}"
        super().__init__(setup)
        self._dataset = dataset
        self._questions = Questions(dataset, params or {}, setup.seed, setup.heldout_prompts)
        self._system_prompt = system_prompt
        self._chat_template = dict(chat_template or {})

    def task(self, index: int) -> Task:
        """Training prompt `index`."""
        return self._to_task(self._questions.train(index))

    def heldout(self, index: int) -> Task:
        """Held-out prompt `index`."""
        return self._to_task(self._questions.heldout(index))

    def score(self, task: Task, completion_ids: Int32Array) -> Done:
        """1.0 where the scorer gives full marks, else 0.0."""
        text = self.setup.tokenizer.decode(completion_ids.tolist(), skip_special_tokens=True)
        reward = self._questions.score(final_answer(text), task.data)
        return Done(reward, {self._dataset: reward})

    def experts(self, task: Task) -> list[Int32Array]:
        """The item's own solution, if it names one, in the form that the system prompt asks for."""
        solution = task.data.answer
        if solution is None:
            return []
        text = f"<answer>{solution}</answer>" if ANSWER_TAG in self._system_prompt else solution
        return [completion_ids(self.setup.tokenizer, text)]

    def _to_task(self, question: Question) -> Task:
        messages = conversation(question, self._system_prompt)
        return Task(chat_prompt(self.setup.tokenizer, messages, self._chat_template), question)


def conversation(question: Question, system_prompt: str) -> list[dict[str, str]]:
    """The question as chat messages."""
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    return [*system, {"role": "user", "content": question.text}]


def final_answer(text: str) -> str:
    """What the scorer is shown: the last <answer> element if there is one, else all that follows the thinking."""
    from reasoning_gym.utils import extract_answer

    spoken = text.rpartition(END_OF_THOUGHT)[2]
    tagged: str | None = extract_answer(spoken)
    return spoken.strip() if tagged is None else tagged
