"""The page itself: whole in one file, and with nothing from outside."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from starlette.testclient import TestClient

from services.control_plane.app import PAGE, create_app
from shared.config import Config

TEXT = PAGE.read_text()


class Page(HTMLParser):
    """Collects what the page refers to, its ids, and its tags."""

    def __init__(self) -> None:
        super().__init__()
        self.references: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.feed(TEXT)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "action", "srcset", "data"):
                self.references.append(value or "")
            if name == "id":
                self.ids.append(value or "")


@pytest.fixture(scope="module")
def page() -> Page:
    return Page()


def test_nothing_is_loaded_from_outside_and_every_path_is_relative(page: Page) -> None:
    assert page.references, "the parser sees something"
    for reference in page.references:
        assert reference.startswith("data:") or re.fullmatch(r"[a-z0-9./]+", reference), reference
        assert not reference.startswith("/"), reference
    loaded = re.findall(r"(?:https?:)?//[\w.-]+\.\w+", TEXT.replace("http://www.w3.org/2000/svg", ""))
    assert loaded == []
    assert "@import" not in TEXT
    assert "url(" not in TEXT


def test_what_it_asks_for_is_relative_so_that_it_works_below_any_path() -> None:
    asked = re.findall(r"ask\([^)]*?[\"`'](/?v1/\w+)", TEXT)
    assert {"v1/status", "v1/history"} <= set(asked)
    assert all(not path.startswith("/") for path in asked)


def test_everything_that_the_script_looks_up_is_there(page: Page) -> None:
    looked_up = set(re.findall(r"\$\(\"([\w-]+)\"\)", TEXT))
    assert looked_up
    assert looked_up <= set(page.ids)


def test_the_token_stays_in_the_tab_and_out_of_addresses(page: Page) -> None:
    assert "sessionStorage" in TEXT
    for elsewhere in ("localStorage", "document.cookie", "indexedDB", "location.hash", "location.search", "?token"):
        assert elsewhere not in TEXT
    assert TEXT.count("Authorization") == 1
    assert '<input id="token" type="password" autocomplete="off"' in TEXT


def test_text_from_processes_is_never_html() -> None:
    assert "innerHTML" not in TEXT
    assert "insertAdjacentHTML" not in TEXT
    assert "eval(" not in TEXT


def test_it_follows_the_readers_light_or_dark_and_fits_a_phone(page: Page) -> None:
    assert "prefers-color-scheme: dark" in TEXT
    assert 'name="viewport"' in TEXT
    assert "max-width: 560px" in TEXT


def test_it_is_served_with_a_policy_that_forbids_the_outside(config: Config) -> None:
    with TestClient(create_app(config), base_url="http://127.0.0.1") as http:
        answer = http.get("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.text == TEXT
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert "http" not in answer.headers["content-security-policy"]
    for closed in ("frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'"):
        assert closed in answer.headers["content-security-policy"]
