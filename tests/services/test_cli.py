"""The command line as people meet it: a process, its output, its exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from shared.config import load_config
from tests.services.rows import step, write_lines

pytestmark = pytest.mark.system  # each starts processes

ROOT = Path(__file__).parents[2]


def trustbatch(*arguments: str, folder: Path = ROOT, **environ: str) -> subprocess.CompletedProcess[str]:
    """Runs the command line from the source tree."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TRUSTBATCH")}
    return subprocess.run(
        [sys.executable, "-m", "services.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=folder,
        env={**clean, "PYTHONPATH": str(ROOT), "COLUMNS": "100", **environ},
    )


def test_help_names_every_command_and_a_first_step() -> None:
    done = trustbatch("--help")
    assert done.returncode == 0
    for command in (
        "up",
        "rollout",
        "learner",
        "objectives",
        "metrics",
        "control-plane",
        "prepare",
        "load",
        "config",
        "doctor",
        "report",
        "lag",
        "dead-letters",
        "record",
        "replay",
    ):
        assert f"\n  {command} " in done.stdout
    assert "trustbatch up --config deploy/configs/demo.yaml" in done.stdout


def test_the_version_is_the_projects() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert trustbatch("--version").stdout == f"trustbatch {project['version']}\n"


def test_help_answers_at_once() -> None:
    """It loads nothing that takes its time."""
    heavy = {"torch", "vllm", "transformers", "fastapi", "matplotlib", "redis", "fsspec", "numpy"}
    command = [sys.executable, "-X", "importtime", "-m", "services.cli", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "typer" in loaded
    assert loaded.isdisjoint(heavy), loaded & heavy


def test_record_and_replay_explain_themselves_and_say_where_nothing_is_recorded(tmp_path: Path) -> None:
    for command, options in (
        ("record", ("--max-bytes SIZE", "--off")),
        ("replay", ("--objective NAME", "--set-knob", "--steps A..B", "--step N", "--checkpoint NAME", "--json")),
    ):
        shown = trustbatch(command, "--help").stdout
        for option in options:
            assert option in shown
        done = trustbatch(command, str(tmp_path))
        assert done.returncode == 2
        assert done.stderr.startswith(f"{tmp_path / 'recorded'}: no recorded step. A learner records each step while")


def test_replay_hands_its_options_on(tmp_path: Path) -> None:
    (tmp_path / "recorded").mkdir()
    (tmp_path / "recorded" / "e0001-s00000003.msgpack").write_bytes(b"not ours")
    done = trustbatch("replay", str(tmp_path), "--step", "4")
    assert "no such step: recorded are 3..3" in done.stderr
    knob = ["--objective", "p3o", "--set-knob", "cap=3"]
    assert "--set-knob cap=3: no chosen objective takes it" in trustbatch("replay", str(tmp_path), *knob).stderr
    done = trustbatch("replay", str(tmp_path), "--objective", "grpo", "--json")
    assert done.returncode == 1
    assert [name for name, _ in json.loads(done.stdout)["refused"]] == ["e0001-s00000003.msgpack"]


@pytest.mark.parametrize("command", ["up", "rollout", "learner", "control-plane", "doctor"])
def test_every_command_explains_the_common_options(command: str) -> None:
    done = trustbatch(command, "--help")
    assert done.returncode == 0
    assert "-c, --config FILE" in done.stdout
    assert "--set KEY=VALUE" in done.stdout


def test_show_prints_file_environment_and_set_merged_and_it_can_be_read_back(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("learner: {steps: 10, groups_per_batch: 8}\nrun: {seed: 1}\n")
    done = trustbatch(
        "config",
        "show",
        "-c",
        str(file),
        "--set",
        "run.seed=3",
        TRUSTBATCH__RUN__SEED="2",
        TRUSTBATCH__LEARNER__STEPS="20",
    )
    assert done.returncode == 0
    (tmp_path / "shown.yaml").write_text(done.stdout)
    shown = load_config(tmp_path / "shown.yaml", (), {})
    assert (shown.learner.steps, shown.learner.groups_per_batch, shown.run.seed) == (20, 8, 3)


def test_show_keeps_the_password_to_itself() -> None:
    done = trustbatch("config", "show", TRUSTBATCH__REDIS__PASSWORD="hunter2hunter2")
    assert done.returncode == 0
    assert "hunter2" not in done.stdout


def test_the_schema_describes_every_key() -> None:
    done = trustbatch("config", "schema")
    schema = json.loads(done.stdout)
    steps = schema["$defs"]["LearnerConfig"]["properties"]["steps"]
    assert steps["description"] == "Optimizer steps after which the run is over."
    assert steps["minimum"] == 1


@pytest.mark.parametrize("file", sorted((ROOT / "deploy" / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_ready_made_files_are_valid(file: Path) -> None:
    done = trustbatch("config", "validate", str(file))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{file}: valid\n", "")


BAD = {
    "learner: {stepz: 3}": "learner.stepz: unknown key; known here: activation_checkpointing, advantage, betas,",
    "learner: {steps: 0}": "learner.steps: Input should be greater than or equal to 1, not 0",
    "learner: {learning_rate: fast}": "learner.learning_rate: Input should be a valid number",
    "redis: {max_memory: 3 parsecs}": "redis.max_memory: ",
    "redis: {url: 'http://x'}": "redis.url: String should match pattern",
    "rollout: {engine: {kind: abacus}}": "rollout.engine: Input tag 'abacus'",
    "admission: {max_staleness: 0}\nlearner: {publish_every: 2}": "learner.publish_every must be 1, not 2",
    "learner: {objective: {name: p3p}}": "learner.objective: objective 'p3p' is not known; did you mean p3o",
    "learner: {shadows: [{name: grpo, eps: 1}]}": "learner.shadows[0]: objective 'grpo' has no knob 'eps'",
    "learner: {objective: {name: chord}}": "rollout.experts must be at least 1",
    "rollout: {experts: 2}": "learner.objective: 'p3o' does not learn from experts, and rollout.experts is 2",
    "learner: {shadows: [grpo, grpo]}": "learner.shadows: grpo is there more than once",
    "learner: [1, 2]": "learner: Input should be a valid dictionary",
    "- a": "expected keys and values at the top level, found a list",
    "learner: {steps: 3": "not valid YAML",
}


@pytest.mark.parametrize(("text", "message"), BAD.items())
def test_a_file_that_cannot_work_is_refused_plainly(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    done = trustbatch("config", "validate", str(file))
    assert done.returncode == 2
    assert message in done.stderr
    assert str(file) in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    done = trustbatch("up", "-c", str(tmp_path / "none.yaml"))
    assert done.returncode == 2
    assert "no such file; ready-made ones are in deploy/configs/" in done.stderr


@pytest.mark.parametrize("command", ["up", "learner", "rollout", "control-plane", "doctor"])
def test_every_command_refuses_a_bad_key_before_it_starts_anything(command: str) -> None:
    file = str(ROOT / "deploy" / "configs" / "demo.yaml")
    done = trustbatch(command, "-c", file, "--set", "learner.steps=many")
    assert done.returncode == 2
    assert "learner.steps: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("setting", ["temperature=0", "top_p=0.9", "repetition_penalty=1.1"])
def test_the_doctor_refuses_sampling_that_cannot_be_trained_on(setting: str) -> None:
    done = trustbatch("doctor", "--set", f"rollout.sampling.{setting}")
    assert done.returncode == 2
    assert f"sampling.{setting.partition('=')[0]} is" in done.stderr


@pytest.mark.parametrize(("given", "message"), [("steps", "write it as key.subkey=value"), ("run.id=a b", "run.id: ")])
def test_a_bad_override_is_refused(given: str, message: str) -> None:
    done = trustbatch("config", "show", "--set", given)
    assert done.returncode == 2
    assert message in done.stderr


def test_unknown_commands_and_options_exit_with_two() -> None:
    assert trustbatch("fly").returncode == 2
    assert trustbatch("up", "--fast").returncode == 2
    assert trustbatch("learner").returncode == 2, "--config is required"


def test_commands_become_the_module_they_name(tmp_path: Path) -> None:
    fake = tmp_path / "learner"
    fake.mkdir()
    (fake / "__init__.py").write_text("")
    (fake / "__main__.py").write_text("import os, sys; print(os.getppid(), *sys.argv[1:])")
    file = str(ROOT / "deploy" / "configs" / "demo.yaml")
    done = trustbatch(
        "learner", "-c", file, "--set", "learner.steps=5", folder=tmp_path, PYTHONPATH=f"{tmp_path}:{ROOT}"
    )
    assert done.stdout.split() == [str(os.getpid()), "--config", file, "--set", "learner.steps=5"]


def test_a_fixed_metrics_port_is_refused_before_anything_is_started(tmp_path: Path) -> None:
    done = trustbatch("up", "--set", f"run.folder={tmp_path / 'run'}", "--set", "metrics.port=9400")
    assert done.returncode == 2
    assert "set metrics.port to 0" in done.stderr
    assert not (tmp_path / "run").exists()


def test_resume_without_a_run_is_refused(tmp_path: Path) -> None:
    done = trustbatch("up", "--resume", "--set", f"run.folder={tmp_path / 'none'}")
    assert done.returncode == 2
    assert "there is no run in" in done.stderr


def test_a_report_is_written_and_shown(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("run: {id: mine}\nredis: {url: 'redis://127.0.0.1:1'}\n")
    write_lines(tmp_path / "history.jsonl", [step(1, [0]), step(2, [1])])
    done = trustbatch("report", str(tmp_path))
    assert done.returncode == 0
    assert "mine" in done.stdout
    assert str(tmp_path / "summary.json") in done.stdout
    assert json.loads((tmp_path / "summary.json").read_text())["groups_applied"] == 2


def test_a_folder_that_is_no_run_has_no_report(tmp_path: Path) -> None:
    done = trustbatch("report", str(tmp_path))
    assert done.returncode == 2
    assert "is not a run folder" in done.stderr
