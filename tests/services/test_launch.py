"""How each process is started: arguments, environment, threads and GPUs."""

from __future__ import annotations

from pathlib import Path

import pytest

from services import launch, machine
from services.gpus import share_out, visible_gpus
from shared.config import load_config, secrets


def test_processes_are_the_same_entry_points_as_elsewhere(tmp_path: Path) -> None:
    config = load_config(None, ["rollout.servers=2", f"run.folder={tmp_path}"], {})
    specs = launch.processes(config, tmp_path / "config.yaml", ())
    file = ["--config", str(tmp_path / "config.yaml")]
    assert [(spec.name, list(spec.argv[1:])) for spec in specs] == [
        ("control-plane", ["-m", "services.control_plane", *file]),
        ("learner", ["-m", "learner", *file]),
        ("rollout:r0", ["-m", "rollout", *file, "--server-id", "r0"]),
        ("rollout:r1", ["-m", "rollout", *file, "--server-id", "r1"]),
    ]
    assert [spec.log.name for spec in specs] == [
        "control-plane.jsonl",
        "learner.jsonl",
        "rollout-r0.jsonl",
        "rollout-r1.jsonl",
    ]


OPERATE = "an-operators-long-token"


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("learner", {"TRUSTBATCH__REDIS__PASSWORD"}),
        ("rollout:r0", {"TRUSTBATCH__REDIS__PASSWORD"}),
        ("control-plane", {"TRUSTBATCH__REDIS__PASSWORD", "TRUSTBATCH__CONTROL_PLANE__OPERATE_TOKEN"}),
    ],
)
def test_children_read_the_stored_file_and_beside_it_get_the_secrets_that_they_need(name: str, given: set[str]) -> None:
    config = load_config(None, ['redis.password="123"', f"control_plane.operate_token={OPERATE}"], {})
    environ = {"PATH": "/bin", "TRUSTBATCH__LEARNER__STEPS": "9", "TRUSTBATCH__REDIS__PASSWORD": "other"}
    child = launch.environment(config, name, environ)
    assert child["PATH"] == "/bin"
    assert {name for name in child if name.startswith("TRUSTBATCH__")} == given
    read = load_config(None, (), child)
    assert secrets.read(read, "redis.password") == "123"
    assert secrets.read(read, "control_plane.operate_token") == (OPERATE if len(given) == 2 else None)


@pytest.mark.parametrize(("cores", "processes", "threads"), [(2, 2, 1), (1, 3, 1), (16, 2, 8), (8, 3, 2)])
def test_cores_are_shared_out_evenly(cores: int, processes: int, threads: int) -> None:
    assert machine.threads_per_process(cores, processes) == threads


def test_a_thread_count_of_the_operators_own_is_respected_and_said() -> None:
    config = load_config(None, (), {})
    assert launch.threads(config, {"OMP_NUM_THREADS": "3"}) == (3, "OMP_NUM_THREADS is set")
    count, why = launch.threads(config, {})
    assert count == max(1, machine.usable_cores() // 2)
    assert "for 2 processes that compute" in why


def test_a_containers_cpu_quota_counts(tmp_path: Path) -> None:
    limit = tmp_path / "cpu.max"
    limit.write_text("250000 100000\n")
    assert machine._quota(limit) == 2
    limit.write_text("max 100000\n")
    assert machine._quota(limit) > 10_000
    assert machine._quota(tmp_path / "none") > 10_000


def test_learner_and_servers_get_gpus_of_their_own() -> None:
    config = load_config(None, ["rollout.servers=2", "rollout.engine.tensor_parallel_size=2"], {})
    assert share_out(config, list("01234")) == (["0"], [["1", "2"], ["3", "4"]])


def test_too_few_gpus_are_shared_by_all() -> None:
    config = load_config(None, ["rollout.servers=2"], {})
    assert share_out(config, ["0", "1"]) == (["0", "1"], [["0", "1"], ["0", "1"]])
    assert share_out(config, []) == ([], [[], []])


def test_a_learner_on_cpu_takes_no_gpu() -> None:
    config = load_config(None, ["learner.device=cpu"], {})
    assert share_out(config, ["5", "7"]) == ([], [["5"]])


def test_visible_gpus_are_those_of_the_environment_else_those_of_the_machine(tmp_path: Path) -> None:
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "3, GPU-ab"}) == ["3", "GPU-ab"]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}) == []
    for name in ("nvidia0", "nvidia10", "nvidia2", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert visible_gpus({}, tmp_path) == ["0", "2", "10"]
