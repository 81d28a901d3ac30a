"""Pictures of the page, and how long it takes to show a long run.

python -m tests.page pictures http://127.0.0.1:8400/ [--to deploy/docs]
python -m tests.page bench [--points 100000] [--json]
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page
from rich.console import Console
from rich.progress import track
from rich.table import Table

from services.machine import usable_cores
from tests.page import run
from tests.page.stack import chromium, open_browser, open_stack

DRAWN = "() => (performance.getEntriesByName('drawn')[0] || {}).startTime"
PAINTED = "() => (performance.getEntriesByName('first-contentful-paint')[0] || {}).startTime"
ASKED = "() => performance.getEntriesByType('resource').reduce((n, r) => n + r.transferSize, 0)"
LOADS = 7
DISTINCT = 200  # rows that are made; the others repeat them
PICTURES: dict[str, dict[str, Any]] = {
    "dashboard": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "dashboard-dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "dashboard-phone": {"viewport": {"width": 375, "height": 812}, "color_scheme": "light", "device_scale_factor": 2},
}


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.page", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    pictures = commands.add_parser("pictures", help="Light, dark and phone, and the groups behind a step.")
    pictures.add_argument("address", help="of a control plane without tokens whose run goes on")
    pictures.add_argument("--to", type=Path, default=Path("deploy/docs"))
    bench = commands.add_parser("bench", help="First paint with many steps behind it.")
    bench.add_argument("--points", type=int, default=100_000, help="optimizer steps in Redis")
    bench.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if chromium() is None:
        print("there is no Chromium here: install the distribution's, or run deploy/chromium/fetch.sh", file=sys.stderr)
        return 1
    if given.command == "pictures":
        take_pictures(given.address, given.to)
    else:
        show(measure(given.points), given.json)
    return 0


def take_pictures(address: str, folder: Path) -> None:
    """Of a run that goes on."""
    with open_browser() as browser:
        for name, options in PICTURES.items():
            page = browser.new_context(**options).new_page()
            page.goto(address)
            wait(page, DRAWN)
            page.locator("#chart-reward canvas").wait_for()
            page.wait_for_timeout(1500)  # for the look of the thing: curves, servers, a second status
            save(page.screenshot(full_page=True), folder / f"{name}.png")
            if name == "dashboard":
                picture_groups(page, folder / "dashboard-groups.png")


def picture_groups(page: Page, path: Path) -> None:
    """The newest step of which groups are kept."""
    page.locator("#chart-ess .plot").press("Enter")
    other = page.locator(".choices button")
    page.locator(".group").or_(other).first.wait_for()
    if other.count():
        other.first.click()
    page.locator(".group").first.wait_for()
    save(page.locator("#groups").screenshot(), path)


def save(picture: bytes, path: Path) -> None:
    """In 256 colours, a third of the bytes."""
    Image.open(io.BytesIO(picture)).convert("RGB").quantize(256).save(path, optimize=True)
    print(path)


def measure(points: int) -> dict[str, Any]:
    """Milliseconds from the navigation on, each load in a context of its own, as a first visitor has it."""
    with open_stack("long") as stack, open_browser() as browser:
        began, start = time.perf_counter(), time.time() - points * run.STEP_S
        made = [run.row(number, 0.0) for number in range(1, DISTINCT + 1)]
        run.write(stack.client, "long", 0)
        for number in track(range(1, points + 1), "writing steps", console=Console(stderr=True)):
            row = made[number % DISTINCT] | {"step": number, "at": start + number * run.STEP_S}
            stack.control.add_history(row)
        run.beat(stack.control, points, seconds=600)
        written = time.perf_counter() - began
        stack.plane.start()
        loads = [load(browser, stack.plane.address) for _ in range(LOADS)]
    return {
        "points": points,
        "loads": LOADS,
        "write_s": round(written, 1),
        **{name: summary([found[name] for found in loads]) for name in loads[0]},
        "cores": usable_cores(),
        "load": round(os.getloadavg()[0], 1),
    }


def load(browser: Browser, address: str) -> dict[str, float]:
    """One visit."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.goto(address)
    found = {"first_paint_ms": wait(page, PAINTED), "charts_drawn_ms": wait(page, DRAWN)}
    found["transferred_kib"] = page.evaluate(ASKED) / 1024
    context.close()
    return found


def wait(page: Page, what: str, seconds: float = 120) -> float:
    """Until the page has it: its policy lets nobody else wait inside it."""
    ends = time.monotonic() + seconds
    while (found := page.evaluate(what)) is None:
        if time.monotonic() > ends:
            raise TimeoutError(f"after {seconds:.0f} s the page shows no run")
        time.sleep(0.01)
    return float(found)


def summary(values: list[float]) -> dict[str, float]:
    """Of several loads."""
    return {"median": round(median(values), 1), "max": round(max(values), 1)}


def show(found: dict[str, Any], as_json: bool) -> None:
    """A table, or JSON."""
    if as_json:
        print(json.dumps(found))
        return
    table = Table(title=f"the page of a run of {found['points']:,} steps, {found['loads']} first visits")
    for column in ("", "median", "largest"):
        table.add_column(column, justify="right" if column else "left")
    for name, unit in (("first_paint_ms", "ms"), ("charts_drawn_ms", "ms"), ("transferred_kib", "KiB")):
        table.add_row(name.rpartition("_")[0].replace("_", " "), *(f"{v:,.0f} {unit}" for v in found[name].values()))
    Console().print(table)
    print(f"{found['cores']} cores, load {found['load']}")


if __name__ == "__main__":
    sys.exit(main())
