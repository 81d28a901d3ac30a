"""Questions of reasoning-gym by index: training, held-out and examples for a warm start, disjoint by content.

    kind + (seed, index, attempt) --SHA-256--> item number in [0, 2**32) --> dataset[item]

The library's item (seed s, index i + 1) equals its item (seed s + 1, index i), so neighbouring seeds would share
nearly all questions; hashed item numbers share none but by accident. Small tasks repeat questions all the
same, therefore held-out means: whatever comes out as one of the held-out questions is drawn again, with the
next attempt, so that it stays a pure function of (seed, index). Held-out questions do not depend on the
seed: runs with different seeds, and the warm-started model that they share, are measured on the same set.
"""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from shared.errors import ConfigError

MAX_REDRAWS = 10_000
# These build their items from sets of strings, whose order changes from process to process.
HASH_DEPENDENT = frozenset({"isomorphic_strings", "polynomial_multiplication", "ransom_note"})
IMPURE = frozenset({"knight_swap"})  # gives another item for the same index when asked again


@dataclass(frozen=True)
class Question:
    """One item of a dataset."""

    text: str
    answer: str | None  # the solution; None where the task has many and names none
    entry: dict[str, Any]  # for the scorer


class Questions:
    """The questions of one dataset for one run. Raises ConfigError where the task cannot serve them."""

    def __init__(self, dataset: str, params: Mapping[str, Any], seed: int, heldout_prompts: int) -> None:
        self._name = dataset
        self._seed = seed
        self._scorer, self._item = open_dataset(dataset, params)
        self._heldout = self._draw_heldout(heldout_prompts)
        self._heldout_texts = frozenset(question.text for question in self._heldout)

    def train(self, index: int) -> Question:
        """Training question `index` of this run."""
        return self._draw("train", self._seed, index)

    def heldout(self, index: int) -> Question:
        """Held-out question `index`."""
        return self._heldout[index]

    def example(self, index: int) -> Question:
        """A question for the warm start: from a sequence of its own, which no run trains on by index."""
        return self._draw("example", index)

    def score(self, answer: str, question: Question) -> float:
        """The scorer's own verdict; anything below 1.0 is partial credit and counts as 0."""
        return 1.0 if self._scorer(answer, question.entry) == 1.0 else 0.0

    def _draw(self, *key: object) -> Question:
        for attempt in range(MAX_REDRAWS):
            question = self._item(_item_number(*key, attempt))
            if question.text not in self._heldout_texts:
                return question
        raise ConfigError(
            f"environment.dataset {self._name!r}: {MAX_REDRAWS:,} draws gave only held-out questions; lower "
            "evaluation.prompts or widen environment.params"
        )

    def _draw_heldout(self, wanted: int) -> list[Question]:
        found: dict[str, Question] = {}
        for attempt in range(20 * wanted + 1000):
            question = self._item(_item_number("heldout", attempt))
            found.setdefault(question.text, question)
            if len(found) == wanted:
                return list(found.values())
        raise ConfigError(
            f"evaluation.prompts is {wanted:,}, but environment.dataset {self._name!r} with these params gave only "
            f"{len(found):,} different questions: lower it, or widen environment.params"
        )


def _item_number(*key: object) -> int:
    digest = hashlib.sha256(repr(key).encode()).digest()
    return int.from_bytes(digest[:4], "little")


Scorer = Callable[[str, dict[str, Any]], float]


def open_dataset(name: str, params: Mapping[str, Any]) -> tuple[Scorer, Callable[[int], Question]]:
    """The dataset's scorer and its items by number.

    Raises:
        ConfigError: no such dataset, a parameter that it does not have, or values that it refuses.

    """
    from reasoning_gym.factory import DATASETS, create_dataset

    _check_names(name, params, DATASETS)

    def create(seed: int, size: int) -> Any:
        try:
            return create_dataset(name, **params, seed=seed, size=size)
        except (AssertionError, ValueError, TypeError, KeyError, AttributeError) as error:
            text = f"environment.params {dict(params)}: refused by reasoning-gym's {name}: {error}"
            raise ConfigError(text) from error

    dataset = create(seed=0, size=1)

    def by_index(number: int) -> Question:
        return _question(dataset[number])

    def by_seed(number: int) -> Question:
        return _question(create(seed=number, size=1)[0])

    try:
        by_index(2**31)
    except IndexError:  # some datasets prepare `size` items in advance: there, an item is a dataset of one
        return dataset.score_answer, by_seed
    return dataset.score_answer, by_index


def _question(entry: dict[str, Any]) -> Question:
    answer = entry.get("answer")
    return Question(str(entry["question"]), None if answer is None else str(answer), entry)


def _check_names(name: str, params: Mapping[str, Any], datasets: Mapping[str, Any]) -> None:
    if name not in datasets:
        near = difflib.get_close_matches(name, datasets, n=5, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(sorted(datasets))}"
        raise ConfigError(f"environment.dataset is {name!r}, which reasoning-gym does not have; {hint}")
    if name in IMPURE:
        raise ConfigError(f"environment.dataset {name!r} gives other questions for the same seed: it cannot be resumed")
    if name in HASH_DEPENDENT and os.environ.get("PYTHONHASHSEED", "random") == "random":
        raise ConfigError(
            f"environment.dataset {name!r} gives other questions in every process unless PYTHONHASHSEED is set: set "
            "it to the same number for all of them, for example PYTHONHASHSEED=0"
        )
    allowed = sorted({field.name for field in fields(datasets[name][1])} - {"seed", "size"})
    for key in params:
        if key not in allowed:
            raise ConfigError(f"environment.params.{key}: {name} has no such parameter; allowed: {', '.join(allowed)}")
