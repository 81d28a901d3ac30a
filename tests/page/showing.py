"""What the tests of the page do again and again: open it, train, wait."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from playwright.sync_api import Page, expect

from tests.page import run
from tests.page.stack import Stack

WAIT_MS = 30_000
expect.set_options(timeout=WAIT_MS)


def until(true: Callable[[], Any], seconds: float = 30) -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, "it has not come to that"
        time.sleep(0.05)


def live(stack: Stack, open_page: Callable[..., Page], **options: Any) -> Page:
    """The page once it shows the run."""
    run.beat(stack.control, newest(stack))
    page = open_page(stack.plane.address, **options)
    expect(page.locator("#link")).to_have_text("live")
    expect(page.locator("#chart-reward canvas")).to_be_visible()
    expect(page.locator("#servers tr")).to_have_count(4)
    return page


def newest(stack: Stack) -> int:
    return int(stack.control.history(last=1)[-1]["step"])


def train(stack: Stack, **changes: Any) -> int:
    """One more step."""
    number = newest(stack) + 1
    run.beat(stack.control, number)
    stack.control.add_history(run.row(number, time.time()) | changes)
    return number
