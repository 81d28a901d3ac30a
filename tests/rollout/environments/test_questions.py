from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rollout.environments.questions import Questions
from shared.errors import ConfigError

TWO_DIGITS = {"min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 2}
ONE_DIGIT = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}  # 200 different questions


def test_a_question_is_a_pure_function_of_seed_and_index() -> None:
    forward, backward = (Questions("chain_sum", TWO_DIGITS, 3, 64) for _ in range(2))
    asked = [forward.train(i).text for i in range(50)]
    assert asked == [backward.train(i).text for i in reversed(range(50))][::-1]


def test_it_is_the_same_in_another_process() -> None:
    code = (
        "from rollout.environments.questions import Questions\n"
        f"q = Questions('chain_sum', {TWO_DIGITS!r}, 3, 64)\n"
        "print([q.train(i).text for i in range(5)], [q.heldout(i).text for i in range(5)])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[3])},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        for seed in ("1", "2")
    }
    here = Questions("chain_sum", TWO_DIGITS, 3, 64)
    assert outputs == {f"{[here.train(i).text for i in range(5)]} {[here.heldout(i).text for i in range(5)]}\n"}


def test_neighbouring_seeds_share_no_shifted_sequence() -> None:
    wide = {"min_terms": 4, "max_terms": 4, "min_digits": 4, "max_digits": 4}
    first, second = (Questions("chain_sum", wide, seed, 8) for seed in (0, 1))
    assert not {first.train(i).text for i in range(300)} & {second.train(i).text for i in range(300)}


def test_training_and_examples_are_disjoint_from_the_held_out_by_content() -> None:
    questions = Questions("chain_sum", ONE_DIGIT, 0, 64)
    heldout = {questions.heldout(i).text for i in range(64)}
    assert len(heldout) == 64
    trained = [questions.train(i).text for i in range(2000)]
    assert not heldout & set(trained)
    assert len(set(trained)) > 100, "a task this small repeats itself, but all of the rest is used"
    assert not heldout & {questions.example(i).text for i in range(2000)}


def test_held_out_questions_and_examples_are_the_same_for_every_seed() -> None:
    first, second = (Questions("chain_sum", TWO_DIGITS, seed, 32) for seed in (0, 5))
    assert [first.heldout(i).text for i in range(32)] == [second.heldout(i).text for i in range(32)]
    assert [first.example(i).text for i in range(32)] == [second.example(i).text for i in range(32)]
    assert [first.train(i).text for i in range(32)] != [second.train(i).text for i in range(32)]


def test_a_larger_held_out_set_begins_with_the_smaller() -> None:
    few, many = (Questions("chain_sum", TWO_DIGITS, 0, n) for n in (10, 20))
    assert [few.heldout(i).text for i in range(10)] == [many.heldout(i).text for i in range(10)]


def test_examples_are_not_what_training_begins_with() -> None:
    wide = {"min_terms": 4, "max_terms": 4, "min_digits": 4, "max_digits": 4}
    questions = Questions("chain_sum", wide, 0, 8)
    assert not {questions.train(i).text for i in range(300)} & {questions.example(i).text for i in range(300)}


@pytest.mark.parametrize("dataset", ["gcd", "spell_backward", "gsm_symbolic", "list_functions"])
def test_datasets_that_prepare_a_list_of_items_give_any_item_too(dataset: str) -> None:
    first, second = (Questions(dataset, {}, 0, 4) for _ in range(2))
    assert first.train(12_345) == second.train(12_345)
    assert len({first.train(i).text for i in range(20)}) > 10


def test_only_full_marks_count() -> None:
    questions = Questions("chain_sum", TWO_DIGITS, 0, 4)
    question = questions.train(0)
    assert question.answer is not None
    assert questions.score(question.answer, question) == 1.0
    assert questions.score(question.answer + " or so", question) == 0.0  # the scorer itself gives partial credit
    assert questions.score("", question) == 0.0


@pytest.mark.parametrize(
    ("dataset", "params", "words"),
    [
        ("chain_sums", {}, "'chain_sums', which reasoning-gym does not have; did you mean chain_sum"),
        ("qqqqqq", {}, "known: ab, acre, "),
        (
            "chain_sum",
            {"min_term": 2},
            "params.min_term: chain_sum has no such parameter; allowed: allow_negation, max_",
        ),
        ("chain_sum", {"seed": 2}, "params.seed: chain_sum has no such parameter"),
        ("chain_sum", {"min_terms": 9}, "refused by reasoning-gym's chain_sum: max_terms must be >= min_terms"),
        ("chain_sum", {"min_terms": "x"}, "refused by reasoning-gym's chain_sum"),
        ("knight_swap", {}, "gives other questions for the same seed"),
    ],
)
def test_what_the_library_does_not_have_is_refused_with_what_is_allowed(
    dataset: str, params: dict[str, object], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        Questions(dataset, params, 0, 4)


def test_a_task_with_fewer_questions_than_are_to_be_held_out_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.prompts is 256, but .* gave only 200 different questions"):
        Questions("chain_sum", ONE_DIGIT, 0, 256)


def test_a_task_all_of_which_is_held_out_leaves_nothing_to_train_on() -> None:
    with pytest.raises(ConfigError, match=r"gave only held-out questions; lower evaluation\.prompts"):
        Questions("chain_sum", ONE_DIGIT, 0, 200).train(0)


def test_a_dataset_that_depends_on_the_hash_seed_needs_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    with pytest.raises(ConfigError, match="unless PYTHONHASHSEED is set"):
        Questions("ransom_note", {}, 0, 4)
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    assert Questions("ransom_note", {}, 0, 4).train(0).text
