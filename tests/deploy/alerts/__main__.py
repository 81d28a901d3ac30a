"""`python -m tests.deploy.alerts [--only WORDS] [--out FILE]`: every alert on a real run, by a fault injected into it.

Prints a table: fault, alert, seconds until it fires. The rules are those of deploy/prometheus/rules.yml, every window
and `for` divided by 100. Between two faults the run recovers, until nothing fires any more.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.__main__ import machine
from tests.deploy.alerts.faults import FAULTS, Fault
from tests.deploy.alerts.run import FASTER, MonitoredRun
from tests.deploy.monitoring import alerts, until

START_S, FIRE_S, CALM_S = 120.0, 90.0, 120.0


def main() -> int:
    """0 if every alert fired for each of its faults, and ended after it."""
    parser = argparse.ArgumentParser(prog="python -m tests.deploy.alerts", description=__doc__)
    parser.add_argument("--out", type=Path, help="writes the table there too")
    parser.add_argument("--only", default="", help="faults whose text or alerts contain this")
    arguments = parser.parse_args()
    faults = [fault for fault in FAULTS if arguments.only in f"{fault.text} {fault.alerts}"]
    with tempfile.TemporaryDirectory(prefix="alerts-") as folder, MonitoredRun(Path(folder)) as run:
        run.wait("the first steps", START_S, lambda: len(run.control.history()) >= 10)
        calm(run)
        rows = [row for fault in faults for row in inject(run, fault)]
    lines = [
        f"{machine()}, {time.strftime('%Y-%m-%d')}; windows and `for` divided by {FASTER:g}",
        "",
        "| fault | alert | seconds |",
        "|---|---|---|",
        *(f"| {text} | {alert} | {seconds:.0f} |" for text, alert, seconds in rows),
    ]
    print("\n".join(lines))
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")
    untried = set(alerts()) - {alert for _, alert, _ in rows}
    assert arguments.only or not untried, untried
    return 0


def inject(run: MonitoredRun, fault: Fault) -> list[tuple[str, str, float]]:
    """Seconds from the fault to each of its alerts."""
    began, fired = time.monotonic(), dict[str, float]()

    def all_fired() -> bool:
        for alert in run.prometheus.firing() & set(fault.alerts):
            fired.setdefault(alert, time.monotonic() - began)
        return fired.keys() == set(fault.alerts)

    with fault.cause(run):
        until(f"{', '.join(fault.alerts)} after {fault.text}", FIRE_S, all_fired)
    print(f"{fault.text}: {', '.join(f'{alert} {seconds:.0f} s' for alert, seconds in fired.items())}", flush=True)
    if not fault.ends_the_run:
        calm(run)
    return [(fault.text, alert, fired[alert]) for alert in fault.alerts]


def calm(run: MonitoredRun) -> None:
    """Waits until the run takes steps and nothing fires."""
    before = len(run.control.history()) and run.control.history(last=1)[0]["step"]
    run.wait("steps", CALM_S, lambda: run.control.history(last=1)[0]["step"] > before)
    run.wait("calm", CALM_S, lambda: not run.prometheus.firing())


if __name__ == "__main__":
    sys.exit(main())
