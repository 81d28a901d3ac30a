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
from pathlib import Path

from tests.chaos.registry import SCENARIOS
from tests.chaos.result import ScenarioResult, write


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
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--scenarios", default=",".join(map(str, SCENARIOS)), help="numbers, default: all")
    parser.add_argument("--short", action="store_true", help="the small form of each")
    parser.add_argument("--out", type=Path, default=Path("runs/chaos"), help="folder of the report")
    parser.add_argument("--keep", action="store_true", help="keep the runs' folders also where a scenario holds")
    arguments = parser.parse_args()
    results: list[ScenarioResult] = []
    for number in (int(word) for word in arguments.scenarios.split(",")):
        workdir = Path(tempfile.mkdtemp(prefix=f"chaos-{number}-"))
        result = run_one(number, arguments.short, workdir / "stack")
        results.append(result)
        print(f"{number:>2}  {result.title}: {result.verdict} ({result.seconds:.0f} s)", flush=True)
        if result.holds and not arguments.keep:
            shutil.rmtree(workdir, ignore_errors=True)
        else:
            print(f"    kept: {workdir}", flush=True)
        write(results, machine(), arguments.out)
    print(f"report: {arguments.out / 'chaos.md'}")
    return 0 if all(r.holds for r in results) else 1


if __name__ == "__main__":
    sys.exit(main())
