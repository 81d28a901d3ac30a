"""One browser and one run for all tests of the page."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests.page import run
from tests.page.showing import WAIT_MS
from tests.page.stack import Stack, open_browser, open_stack

STEPS = 60


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with open_stack("shown") as opened:
        run.write(opened.client, "shown", STEPS)
        run.write(opened.client, "another", 40, seed=9)
        opened.plane.start()
        yield opened


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens the page; what its console complains of fails the test, unless it is told what to expect."""
    complaints: list[str] = []
    contexts = []

    def opened(address: str, *, expected: str = "", width: int = 1280, **options: Any) -> Page:
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(WAIT_MS)
        page.on("pageerror", lambda error: complaints.append(str(error)))

        def heard(message: Any) -> None:
            if message.type in ("error", "warning") and not (expected and re.search(expected, message.text)):
                complaints.append(message.text)

        page.on("console", heard)
        page.goto(address)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []
