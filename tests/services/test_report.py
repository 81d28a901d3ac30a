"""The report's numbers from hand-made histories: lost and twice-applied groups are found where there are some."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest

from services.facts import RedisFacts, read_facts
from services.history import History, read_history
from services.report import Life, account, lived, summarize, write_report
from shared.control import ControlState, EvaluationResult, Latest
from shared.errors import StoreError
from shared.keys import Keys
from shared.redis_client import Client
from shared.types import group_id_for
from tests.services.rows import Row, dropped, evaluation, step, write_lines


def facts(appended: int = 0, **changes: object) -> RedisFacts:
    plain: dict[str, object] = {
        "appended": appended,
        "in_stream": [],
        "dead_letters": [],
        "policy_version": 9,
        "phase": "finished",
        "reason": "all steps are done",
        "proof_max_nats": None,
        "evaluations": [],
    }
    return RedisFacts(**{**plain, **changes})  # type: ignore[arg-type]


def history(rows: list[Row], gone: list[Row] | None = None, evaluations: list[Row] | None = None) -> History:
    return History(rows=rows, abandoned=0, evaluations=evaluations or [], dropped=gone or [], lost=[], torn=0)


def test_a_complete_run_has_lost_nothing() -> None:
    rows = [step(1, [0, 1]), step(2, [2, 4])]
    found = account(history(rows, [dropped(3)]), facts(appended=7, in_stream=[4, 5, 6]))
    assert (found.applied, found.applied_twice, found.ended, found.waiting, found.lost) == (4, 0, 1, 2, 0)


def test_a_group_that_is_nowhere_is_lost() -> None:
    found = account(history([step(1, [0, 1])]), facts(appended=5, in_stream=[4]))
    assert found.lost == 2, "indices 2 and 3 were acknowledged and are neither applied, ended nor waiting"


def test_a_group_in_two_steps_is_applied_twice_and_not_a_lost_one_less() -> None:
    found = account(history([step(1, [0, 1]), step(2, [1, 2])]), facts(appended=4))
    assert found.applied_twice == 1
    assert found.applied == 3
    assert found.lost == 1, "index 3"


def test_a_group_twice_in_one_step_is_applied_twice() -> None:
    assert account(history([step(1, [0, 0])]), facts(appended=1)).applied_twice == 1


def test_a_group_that_was_lost_and_drawn_again_is_lost_once_and_applied_once() -> None:
    rows = history([step(1, [0, 1])])
    named = replace(rows, lost=[{"prompt_index": 1, "cause": "taken_out", "claim": "1", "at": 1.0}])
    found = account(named, facts(appended=3))
    assert (found.lost, found.unaccounted, found.applied) == (1, 0, 2)
    assert account(named, facts(appended=4)).lost == 2, "one more that nobody can explain"
    assert summarize("mine", named, facts(appended=3))["groups_lost_named"] == [1]


def test_a_dead_letter_without_a_record_is_ended_not_lost() -> None:
    found = account(history([step(1, [0])]), facts(appended=2, dead_letters=[2]))
    assert (found.ended, found.lost, found.unaccounted) == (1, 0, 0)


def test_entries_of_another_run_were_never_acknowledged_and_hide_no_loss() -> None:
    gone = [dropped(-1, "wrong_run"), dropped(-1, "wrong_run")]
    found = account(history([step(1, [0])], gone), facts(appended=3, dead_letters=[-1, -1], in_stream=[-1]))
    assert (found.ended, found.waiting, found.lost) == (0, 0, 2)


def test_more_groups_than_were_acknowledged_are_said() -> None:
    found = account(history([step(1, [0, 1, 2])], [dropped(3)]), facts(appended=2))
    assert (found.lost, found.unaccounted) == (0, 2)


def test_the_time_of_earlier_starts_counts_even_of_one_that_left_no_report(tmp_path: Path) -> None:
    assert lived(tmp_path) == 0.0
    write_lines(tmp_path / "history.jsonl", [step(1, at=1001.0), step(2, at=1005.0)])
    assert lived(tmp_path) == 4.0
    (tmp_path / "summary.json").write_text('{"wall_seconds": 12.5}')
    os.utime(tmp_path / "summary.json", (1010.0, 1010.0))
    assert lived(tmp_path) == 12.5
    write_lines(tmp_path / "history.jsonl", [step(1, at=1001.0), step(2, at=1020.0), step(3, at=1022.0)])
    assert lived(tmp_path) == 14.5, "killed after the report, two seconds after its first step"


def test_the_largest_numerics_floor_of_all_starts_is_kept(tmp_path: Path) -> None:
    write_lines(tmp_path / "history.jsonl", [step(1, [0])])
    write_report(tmp_path, "r", facts(1), Life(1.0, "stopped by SIGINT", proof_max_nats=5e-5))
    again = write_report(tmp_path, "r", facts(1), Life(2.0, "finished", proof_max_nats=2e-5))
    assert again["numerics_floor_max_nats"] == 5e-5


def test_a_group_dropped_on_an_abandoned_branch_and_applied_later_counts_once() -> None:
    found = account(history([step(1, [0, 1])], [dropped(1)]), facts(appended=2))
    assert (found.applied, found.ended, found.lost) == (2, 0, 0)


def test_without_redis_nobody_can_know_what_was_lost() -> None:
    found = account(history([step(1, [0])]), None)
    assert (found.appended, found.waiting, found.lost) == (None, None, None)


def test_the_summary_has_every_promised_number() -> None:
    rows = [
        step(
            1, [0], reward_mean=0.1, token_ess=0.99, sequence_ess=0.8, staleness_mean=0.0, staleness_max=0, tokens=300
        ),
        step(2, [1], reward_mean=0.3, token_ess=0.7, sequence_ess=0.4, staleness_mean=4.0, staleness_max=5, tokens=100),
        step(2, [], skipped="non-finite loss", token_ess=math.nan, sequence_ess=math.nan, staleness_max=99),
    ]
    gone = [dropped(2), dropped(3), dropped(4, "undecodable")]
    found = summarize("r", history(rows, gone, [evaluation(0, 0.2), evaluation(2, 0.6)]), facts(5, proof_max_nats=3e-6))
    expected = {
        "run_id": "r",
        "finished_reason": "finished: all steps are done",
        "steps": 2,
        "policy_version": 9,
        "heldout_accuracy_start": 0.2,
        "heldout_accuracy_end": 0.6,
        "groups_applied": 2,
        "groups_lost": 0,
        "groups_applied_twice": 0,
        "groups_dropped": {"too_stale": 2, "undecodable": 1},
        "token_ess_min": 0.7,
        "sequence_ess_min": 0.4,
        "staleness_mean": 1.0,
        "staleness_max": 5,
        "staleness_lag_mean": 0.0,
        "staleness_flight_mean": 0.5,
        "staleness_queue_mean": 0.5,
        "numerics_floor_max_nats": 3e-6,
        "reward_start": pytest.approx(0.2),
        "reward_end": pytest.approx(0.2),
        "tokens_trained": 400,
        "wall_seconds": 1.0,
        "steps_skipped": 1,
    }
    assert {name: found[name] for name in expected} == expected


def test_an_empty_run_has_a_summary_too() -> None:
    found = summarize("r", history([]), None)
    assert found["steps"] == 0
    assert found["token_ess_min"] is None
    assert found["finished_reason"] == "unknown (Redis could not be asked)"


def test_the_report_is_strict_json_and_a_real_picture(tmp_path: Path) -> None:
    rows = [step(n, [n], reward_mean=n / 50, token_ess=math.nan if n == 7 else 0.9) for n in range(1, 41)]
    write_lines(tmp_path / "history.jsonl", rows)
    write_lines(tmp_path / "evaluations.jsonl", [evaluation(0, 0.1), evaluation(20, 0.5), evaluation(40, 0.8)])
    write_report(tmp_path, "r", facts(40), Life(12.5, "finished"))

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    summary = json.loads((tmp_path / "summary.json").read_text(), parse_constant=refuse)
    assert summary["wall_seconds"] == 12.5
    picture = (tmp_path / "plot.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(picture) > 30_000


def test_a_later_report_without_redis_keeps_what_the_first_one_knew(tmp_path: Path) -> None:
    write_lines(tmp_path / "history.jsonl", [step(1, [0])])
    write_report(tmp_path, "r", facts(5, in_stream=[3, 4]), Life(12.5, "stopped by SIGINT"))
    again = write_report(tmp_path, "r", None)
    assert (again["groups_appended"], again["groups_waiting"], again["groups_lost"]) == (5, 2, 2)
    assert again["finished_reason"] == "stopped by SIGINT"
    assert again["wall_seconds"] == 12.5


def test_a_run_without_a_single_step_is_reported(tmp_path: Path) -> None:
    assert write_report(tmp_path, "r", None)["steps"] == 0
    assert (tmp_path / "plot.png").exists()


def test_a_folder_that_is_gone_is_a_store_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="the report cannot be written"):
        write_report(tmp_path / "gone", "r", None)


def test_facts_come_from_the_run_in_redis(client: Client, keys: Keys) -> None:
    control = ControlState(client, keys)
    control.set_phase("running", "")
    control.announce(control.take_epoch(), Latest(3, 2, 3), 0, [])
    control.beat("rollout:r0", {"kind": "rollout", "proof_max_nats": 2e-6}, 30)
    control.beat("rollout:r1", {"kind": "rollout", "proof_max_nats": None}, 30)
    control.finish_evaluation(0, EvaluationResult(0, 0.25, 64, 5.0, 1.0, "r0", 1.0))
    for index in range(150):
        group_id = group_id_for(keys.run_id, index)
        client.xadd(keys.groups, {"group_id": group_id, "prompt_index": index, "payload": b"x"})
    client.xadd(keys.dead_letters, {"group_id": "other:7", "prompt_index": 7, "reason": "wrong_run", "payload": b"x"})
    client.xadd(keys.dead_letters, {"group_id": group_id_for(keys.run_id, 9), "prompt_index": 9, "payload": b"x"})
    client.set(keys.appended, 151)
    found = read_facts(client, keys)
    assert found.appended == 151
    assert found.in_stream == list(range(150))
    assert found.dead_letters == [-1, 9], "index 7 is another run's"
    assert (found.policy_version, found.phase, found.proof_max_nats) == (3, "running", 2e-6)
    assert [row["accuracy"] for row in found.evaluations] == [0.25]


def test_history_and_facts_of_a_whole_folder_agree(tmp_path: Path) -> None:
    write_lines(tmp_path / "history.jsonl", [step(1, [0, 1]), step(2, [2, 3]), step(2, [3, 2]), step(3, [4, 6])])
    write_lines(tmp_path / "dropped.jsonl", [dropped(5)])
    found = account(read_history(tmp_path), facts(9, in_stream=[6, 7]))
    assert (found.applied, found.applied_twice, found.ended, found.waiting, found.lost) == (6, 0, 1, 1, 1)
