"""`python -m tests.chaos [--scenarios 1,4,6] [--short] [--out FOLDER]`: injects faults, judges from outside."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from services.children import PARENT_ENV, Child
from shared.process import guard
from tests.chaos.processes import kill, start_python
from tests.chaos.registry import SCENARIOS
from tests.chaos.result import ScenarioResult, read, write


def run_one(number: int, short: bool, workdir: Path) -> ScenarioResult:
    """Runs a scenario; what it raises is its verdict."""
    started = time.monotonic()
    title, scenario = SCENARIOS[number]
    try:
        result = scenario(short, workdir)
    except Exception as error:  # noqa: BLE001 - one broken scenario does not hide the others
        result = ScenarioResult(number, title, short)
        result.check("the scenario runs to its end", False, f"{type(error).__name__}: {error}")
        result.details["traceback"] = traceback.format_exc()
    result.seconds = time.monotonic() - started
    return result


def machine() -> str:
    """What the figures were measured on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    return (
        f"{cores} cores, {memory:.0f} GiB, {platform.system()} {platform.machine()}, Python {platform.python_version()}"
    )


def main() -> int:
    """0 if every scenario holds."""
    parent = os.environ.get(PARENT_ENV)
    guard(int(parent) if parent else None)
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--scenarios", default=",".join(map(str, SCENARIOS)), help="numbers, default: all")
    parser.add_argument("--short", action="store_true", help="the small form of each")
    parser.add_argument("--jobs", type=int, default=2, help="scenarios at once (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/chaos"), help="folder of the report")
    parser.add_argument("--keep", action="store_true", help="keep the runs' folders also where a scenario holds")
    arguments = parser.parse_args()
    numbers = [int(word) for word in arguments.scenarios.split(",")]
    arguments.out.mkdir(parents=True, exist_ok=True)
    if len(numbers) == 1:
        result = alone(numbers[0], arguments.short, arguments.keep)
        write([result], machine(), arguments.out)
        return 0 if result.holds else 1
    results = [read(path) for path in each_alone(numbers, arguments)]
    write(sorted(results, key=lambda r: r.number), machine(), arguments.out)
    print(f"report: {arguments.out / 'chaos.md'}")
    return 0 if all(r.holds for r in results) else 1


def alone(number: int, short: bool, keep: bool) -> ScenarioResult:
    """Runs a scenario in a folder of its own, which is kept where it does not hold."""
    workdir = Path(tempfile.mkdtemp(prefix=f"chaos-{number}-"))
    result = run_one(number, short, workdir / "stack")
    print(f"{number:>2}  {result.title}: {result.verdict} ({result.seconds:.0f} s)", flush=True)
    if result.holds and not keep:
        shutil.rmtree(workdir, ignore_errors=True)
    else:
        print(f"    kept: {workdir}", flush=True)
    return result


def each_alone(numbers: Sequence[int], arguments: argparse.Namespace) -> list[Path]:
    """Runs every scenario in a process of its own, `jobs` at a time; the files of their results."""
    waiting, running, files = list(numbers), list[Child](), []
    try:
        while waiting or running:
            running = [child for child in running if child.exit_code() is None]
            if waiting and len(running) < arguments.jobs:
                number = waiting.pop(0)
                folder = arguments.out / f"scenario-{number:02}"
                words = ["tests.chaos", "--scenarios", str(number), "--out", str(folder)]
                words += [f"--{name}" for name in ("short", "keep") if getattr(arguments, name)]
                running.append(start_python(f"scenario {number}", arguments.out / f"scenario-{number:02}.log", words))
                files.append(folder / "chaos.json")
                print(f"{number:>2}  {SCENARIOS[number][0]} ...", flush=True)
            time.sleep(0.1)
    finally:
        for child in running:
            kill(child)
    return files


if __name__ == "__main__":
    sys.exit(main())
