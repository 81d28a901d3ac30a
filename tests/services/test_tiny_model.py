"""When the small model is made, and when what is there is good enough."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from services.tiny_model import is_current, make
from shared.config import Config, load_config
from shared.errors import ConfigError, TrustbatchError


def config(tmp_path: Path, *overrides: str) -> Config:
    return load_config(None, [f"model.path={tmp_path / 'model'}", "model.tiny={}", *overrides], {})


def made(of: Config) -> list[tuple[str, Sequence[str]]]:
    """Makes it with programs that only are noted down."""
    programs: list[tuple[str, Sequence[str]]] = []
    make(of, Path("run/config.yaml"), lambda name, arguments: programs.append((name, arguments)))
    return programs


def test_examples_come_first_then_the_warm_start_reads_them(tmp_path: Path) -> None:
    (first, examples), (second, warm_start) = made(config(tmp_path, "model.tiny.warm_start_examples=600"))
    assert (first, second) == ("examples", "warm-start")
    assert list(examples[:6]) == ["-m", "rollout.examples", "--config", "run/config.yaml", "--count", "600"]
    assert list(warm_start) == ["-m", "learner.warm_start", "--config", "run/config.yaml", "--examples", examples[-1]]


@pytest.mark.parametrize(
    ("change", "current"),
    [
        ("run.seed=5", True),
        ("learner.steps=7", True),
        ("model.tiny.seed=5", False),
        ("model.tiny.hidden_size=64", False),
        ("environment.dataset=gcd", False),
        ("evaluation.prompts=10", False),
    ],
)
def test_it_is_made_again_when_something_that_it_depends_on_changes(tmp_path: Path, change: str, current: bool) -> None:
    assert not is_current(config(tmp_path))
    made(config(tmp_path))
    assert is_current(config(tmp_path))
    assert is_current(config(tmp_path, change)) is current


def test_a_making_that_failed_half_way_is_repeated(tmp_path: Path) -> None:
    def fail(name: str, arguments: Sequence[str]) -> None:
        if name == "warm-start":
            raise TrustbatchError("killed")

    with pytest.raises(TrustbatchError, match="killed"):
        make(config(tmp_path), Path("run/config.yaml"), fail)
    assert not is_current(config(tmp_path))
    made(config(tmp_path))
    assert is_current(config(tmp_path))


def test_a_model_of_the_operators_own_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds a model that trustbatch did not make"):
        made(config(tmp_path))
