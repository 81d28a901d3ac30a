"""The surviving lineage of a run, from files that were cut off anywhere."""

from __future__ import annotations

from pathlib import Path

from services.history import applied_counts, read_history, surviving
from tests.services.rows import dropped, evaluation, step, write_lines


def test_steps_after_a_restored_checkpoint_replace_what_they_repeat() -> None:
    rows = [step(1), step(2), step(3), step(4), step(3, reward_mean=0.9), step(4), step(5)]
    lineage = surviving(rows)
    assert [row["step"] for row in lineage] == [1, 2, 3, 4, 5]
    assert lineage[2]["reward_mean"] == 0.9


def test_a_skipped_batch_does_not_remove_the_step_before_it() -> None:
    lineage = surviving([step(1), step(1, skipped="non-finite loss"), step(2)])
    assert [(row["step"], row["skipped"]) for row in lineage] == [(1, ""), (1, "non-finite loss"), (2, "")]


def test_a_group_applied_in_two_surviving_steps_counts_twice_and_one_taken_back_does_not() -> None:
    rows = [step(1, [0, 1]), step(2, [2, 3]), step(2, [2, 3]), step(3, [1, 4])]
    counts = applied_counts(surviving(rows))
    assert counts == {0: 1, 1: 2, 2: 1, 3: 1, 4: 1}


def test_skipped_steps_apply_nothing() -> None:
    assert applied_counts([step(1, [0], skipped="non-finite")]) == {}


def test_torn_and_foreign_lines_are_counted_not_fatal(tmp_path: Path) -> None:
    write_lines(tmp_path / "history.jsonl", [step(1)], torn='{"step": 2, "poli')
    write_lines(tmp_path / "dropped.jsonl", [dropped(7), dropped(7), dropped(-1), dropped(-1)], torn="[1]\n\n")
    history = read_history(tmp_path)
    assert [row["step"] for row in history.rows] == [1]
    assert history.torn == 2
    assert [row["prompt_index"] for row in history.dropped] == [7, -1, -1], "a repeated index is one group"


def test_steps_that_a_restore_moved_out_of_the_history_are_counted(tmp_path: Path) -> None:
    write_lines(tmp_path / "history.jsonl", [step(1), step(2)])
    taken_back = [step(2), step(3), step(3, skipped="non-finite loss")]
    write_lines(tmp_path / "history.abandoned.jsonl", taken_back, torn='{"step": 4, "poli')
    history = read_history(tmp_path)
    assert ([row["step"] for row in history.rows], history.abandoned, history.torn) == ([1, 2], 2, 1)


def test_evaluations_are_one_a_version_in_order(tmp_path: Path) -> None:
    write_lines(tmp_path / "evaluations.jsonl", [evaluation(5, 0.5), evaluation(0, 0.1), evaluation(5, 0.6)])
    assert [(row["policy_version"], row["accuracy"]) for row in read_history(tmp_path).evaluations] == [
        (0, 0.1),
        (5, 0.6),
    ]


def test_an_empty_folder_is_an_empty_history(tmp_path: Path) -> None:
    history = read_history(tmp_path)
    assert (history.rows, history.evaluations, history.dropped, history.torn) == ([], [], [], 0)
