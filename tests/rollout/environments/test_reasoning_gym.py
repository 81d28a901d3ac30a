from __future__ import annotations

import numpy as np
import pytest

from rollout.environments.base import Done, Setup
from rollout.environments.reasoning_gym import ReasoningGym, final_answer
from shared.types import Int32Array
from tests.rollout.models import byte_tokenizer

PARAMS = {"min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 2}
SETUP = Setup(seed=0, tokenizer=byte_tokenizer(), heldout_prompts=8, deadline_s=60.0, workers=1)


@pytest.fixture(scope="module")
def sums() -> ReasoningGym:
    return ReasoningGym(SETUP, "chain_sum", PARAMS)


def ids(text: str) -> Int32Array:
    return np.asarray(SETUP.tokenizer.encode(text, add_special_tokens=False), dtype=np.int32)


def test_prompts_go_through_the_chat_template_up_to_where_the_model_speaks(sums: ReasoningGym) -> None:
    task = sums.task(0)
    assert task.prompt_ids.dtype == np.int32
    expected = f"<|im_start|>user\n{task.data.text}<|im_end|>\n<|im_start|>assistant\n"
    assert SETUP.tokenizer.decode(task.prompt_ids.tolist()) == expected


def test_a_system_prompt_and_template_arguments_are_passed_on() -> None:
    told = ReasoningGym(SETUP, "chain_sum", PARAMS, system_prompt="Be brief.", chat_template={"unknown": 1})
    text = SETUP.tokenizer.decode(told.task(0).prompt_ids.tolist())
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")


def test_a_right_answer_is_worth_1_and_the_component_bears_the_scorer_s_name(sums: ReasoningGym) -> None:
    task = sums.task(0)
    assert sums.score(task, ids(f"{task.data.answer}<|im_end|>")) == Done(1.0, {"chain_sum": 1.0})
    assert sums.score(task, ids(f"{task.data.answer} or so<|im_end|>")) == Done(0.0, {"chain_sum": 0.0})


def test_held_out_tasks_are_none_of_the_training_tasks(sums: ReasoningGym) -> None:
    heldout = {tuple(sums.heldout(i).prompt_ids.tolist()) for i in range(8)}
    assert len(heldout) == 8
    assert not heldout & {tuple(sums.task(i).prompt_ids.tolist()) for i in range(200)}


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("42", "42"),
        (" 42\n", "42"),
        ("<think>\n40 + 2\n</think>\n\n42", "42"),
        ("<think>never ends", "<think>never ends"),
        ("It is <answer> 41 </answer>, no, <answer>42</answer>.", "42"),
        ("<think><answer>1</answer></think>2", "2"),
    ],
)
def test_the_scorer_sees_the_final_answer(text: str, answer: str) -> None:
    assert final_answer(text) == answer


WORDS = {"min_word_len": 4, "max_word_len": 7}


@pytest.mark.parametrize("system_prompt", ["", "Give the result in <answer> </answer> tags."])
@pytest.mark.parametrize(("dataset", "params"), [("spell_backward", WORDS), ("chain_sum", PARAMS)])
def test_an_expert_s_answer_is_worth_1_ends_and_has_the_form_that_is_asked_for(
    dataset: str, params: dict[str, int], system_prompt: str
) -> None:
    environment = ReasoningGym(SETUP, dataset, params, system_prompt)
    for index in range(20):
        task = environment.task(index)
        [answer] = environment.experts(task)
        assert answer.dtype == np.int32
        assert environment.score(task, answer) == Done(1.0, {dataset: 1.0})
        said = f"<answer>{task.data.answer}</answer>" if system_prompt else task.data.answer
        assert answer.tolist() == [*ids(said).tolist(), SETUP.tokenizer.eos_token_id]


def test_a_task_that_names_no_solution_has_no_expert() -> None:
    environment = ReasoningGym(SETUP, "graph_color")
    assert environment.experts(environment.task(0)) == []
