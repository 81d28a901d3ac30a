"""A short look, in every run of the tests, at what the long fuzzing looks at for hours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS, seeds

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("target", TARGETS)
def test_good_inputs_pass(target: str) -> None:
    for seed in seeds(target):
        TARGETS[target](seed)


@pytest.mark.parametrize("target", TARGETS)
def test_good_containers_with_wrong_contents_give_a_typed_error_or_a_correct_value(target: str) -> None:
    @settings(max_examples=300, deadline=None, database=None)
    @given(choices=st.binary(min_size=4, max_size=48))
    def look(choices: bytes) -> None:
        TARGETS[target](b"\x01" + choices)

    look()


@pytest.mark.parametrize("target", TARGETS)
def test_damaged_bytes_give_a_typed_error_or_a_correct_value(target: str) -> None:
    good = [seed for seed in seeds(target) if seed[0] == 0]

    @settings(max_examples=150, deadline=None, database=None)
    @given(data=st.data())
    def look(data: st.DataObject) -> None:
        spoiled = bytearray(data.draw(st.sampled_from(good)))
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(1, len(spoiled)))
            spoiled[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=6))
        TARGETS[target](bytes(spoiled))

    look()


@pytest.mark.system
def test_the_long_fuzzing_runs_and_finds_what_breaks_a_promise(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris has no wheel for this Python")
    command = [sys.executable, "-m", "tests.fuzz", "codec", "--runs", "2000"]
    environ = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Done 2000 runs" in done.stderr
    broken = "import shared.codec as c; c.check_frame = lambda *a: 1 / 0; import tests.fuzz.__main__ as m; m.main()"
    command = [sys.executable, "-c", broken, "codec", "--runs", "2000"]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    assert "ZeroDivisionError" in done.stdout + done.stderr
