"""The doctor's findings, each with a remedy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from services import doctor
from services.doctor import Finding, examine, show
from shared.config import load_config
from tests.conftest import RedisServer

pytestmark = pytest.mark.system  # each starts processes


def findings(*overrides: str) -> dict[str, Finding]:
    return {finding.what: finding for finding in examine(load_config(None, overrides, {}))}


def test_a_machine_that_has_everything_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = load_config(None, [f"run.folder={tmp_path}", "model.tiny={}", f"model.path={tmp_path / 'm'}"], {})
    assert show(examine(config)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.split()[0] in ("ok", "warn") for line in lines)
    assert any(line.startswith("ok    engine         vllm") for line in lines)
    assert any(line.startswith("ok    environment    chain_sum") for line in lines)
    assert any("starts" in line and "redis-server" in line for line in lines)
    assert any("will be made by `trustbatch up`" in line for line in lines)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("environment.dataset=chain_summ", "did you mean chain_sum"),
        ("environment.params.max_term=3", "environment.params.max_term: chain_sum has no such"),
    ],
)
def test_an_environment_that_a_rollout_server_would_refuse_is_found_before(override: str, words: str) -> None:
    finding = findings(override)["environment"]
    assert finding.level == "fail"
    assert words in finding.found
    assert finding.remedy


def test_one_failure_makes_the_exit_code_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert show(iter([Finding("ok", "a", "fine"), Finding("fail", "b", "missing", "install b")])) == 1
    assert capsys.readouterr().out.splitlines()[1] == "fail  b              missing  -> install b"


def test_a_redis_that_does_not_answer_is_a_failure_with_a_remedy() -> None:
    finding = findings("redis.url=redis://:pw@127.0.0.1:1")["redis"]
    assert finding.level == "fail"
    assert "start it, or correct redis.url" in finding.remedy
    assert "pw" not in finding.found


def test_a_redis_that_answers_is_shown_with_its_version(redis_server: RedisServer) -> None:
    finding = findings(f"redis.url={redis_server.url}")["redis"]
    assert finding.level == "ok"
    assert finding.found.endswith(f"at {redis_server.url}")


def test_a_missing_gpu_is_a_failure_only_where_one_is_asked_for() -> None:
    import torch

    if torch.cuda.is_available():
        assert findings("learner.device=cuda")["device"].level != "fail"
        return
    assert findings()["device"].level == "ok"
    finding = findings("learner.device=cuda")["device"]
    assert finding.level == "fail"
    assert finding.remedy == "torch sees no GPU: set learner.device to cpu or auto"


def test_a_folder_that_is_no_model_is_a_failure(tmp_path: Path) -> None:
    finding = findings(f"model.path={tmp_path}")["model"]
    assert (finding.level, finding.found) == ("fail", f"{tmp_path} has no config.json")


@pytest.mark.parametrize("module", ["vllm", "fastapi"])
def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name == module else real(name))
    finding = findings()["engine" if module == "vllm" else module]
    assert finding.level == "fail"
    assert finding.remedy


def test_add_ons_built_for_cuda_beside_a_cpu_torch_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "2.13.0+cpu", "torchvision": "0.28.0", "torchaudio": "2.13.0+cpu"}
    monkeypatch.setattr(doctor, "find_spec", lambda name: object() if name in versions else None)
    monkeypatch.setattr(doctor, "_version_of", lambda name: versions.get(name, ""))
    found: Sequence[Finding] = list(doctor._add_ons())
    assert [(finding.level, finding.what) for finding in found] == [("warn", "torchvision")]
