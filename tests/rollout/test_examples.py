from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rollout.environments.questions import Questions
from rollout.examples import examples
from shared.config import load_config
from shared.errors import ConfigError

OVERRIDES = [
    "environment.kind=reasoning_gym",
    "environment.dataset=chain_sum",
    "environment.params={min_terms: 2, max_terms: 2, min_digits: 1, max_digits: 1}",
    "evaluation.prompts=64",
]


def test_examples_are_right_and_none_of_them_is_held_out() -> None:
    config = load_config(None, OVERRIDES, {})
    rows = list(examples(config, 500))
    questions = Questions("chain_sum", config.environment.params, config.run.seed, 64)
    heldout = {questions.heldout(i).text for i in range(64)}
    assert not heldout & {row["messages"][0]["content"] for row in rows}  # type: ignore[index]
    for index, row in enumerate(rows[:50]):
        assert questions.score(str(row["answer"]), questions.example(index)) == 1.0


def test_the_command_writes_json_lines(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("environment: {kind: reasoning_gym, dataset: gcd, system_prompt: Be brief.}\n")
    command = [sys.executable, "-m", "rollout.examples", "--config", "c.yaml", "--count", "3", "--out", "out.jsonl"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [sorted(row) for row in rows] == [["answer", "messages"]] * 3
    assert rows[0]["messages"][0] == {"role": "system", "content": "Be brief."}


def test_only_tasks_with_solutions_can_be_exported() -> None:
    python = load_config(None, ["environment.kind=python", "environment.path=a.b:C"], {})
    with pytest.raises(ConfigError, match="only reasoning_gym tasks come with solutions"):
        list(examples(python, 1))
