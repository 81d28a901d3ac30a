"""The files of the page: bounded, with nothing from outside, and no text from processes that could become code."""

from __future__ import annotations

import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from services.control_plane.app import create_app
from services.control_plane.page import FOLDER, NAMES
from shared.config import Config

ROOT = Path(__file__).parents[3]
HTML = (FOLDER / "index.html").read_text()
OURS = {path.name: path.read_text() for path in FOLDER.iterdir() if path.suffix in (".js", ".css", ".html", ".svg")}
OURS = {name: text for name, text in OURS.items() if not name.startswith("uplot")}
SCRIPT = "\n".join(text for name, text in OURS.items() if name.endswith(".js"))


class Page(HTMLParser):
    """Collects what the page refers to, its ids, and its tags."""

    def __init__(self) -> None:
        super().__init__()
        self.references: list[str] = []
        self.ids: list[str] = []
        self.styled: list[str] = []
        self.feed(HTML)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "action", "srcset", "data"):
                self.references.append(value or "")
            if name == "id":
                self.ids.append(value or "")
            if name == "style" or name.startswith("on") or tag == "style":
                self.styled.append(f"{tag} {name}")


@pytest.fixture(scope="module")
def page() -> Page:
    return Page()


def test_the_list_of_files_is_the_folder() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {*NAMES, "index.html", "uplot.LICENSE.txt"}


def test_every_reference_is_relative_and_leads_to_a_file_or_a_route(page: Page) -> None:
    files = {f"page/{name}" for name in NAMES}
    assert set(page.references) - files == {"metrics", "openapi.json", "v1/status"}
    imported = set(re.findall(r'from "\./([\w.]+)"', SCRIPT))
    assert imported
    assert imported <= set(NAMES)
    assert {f"page/{name}" for name in imported} <= set(page.references), (
        "each is asked for at once, none after another"
    )


def test_nothing_is_loaded_from_outside() -> None:
    for name, text in OURS.items():
        loaded = re.findall(r"(?:https?:)?//[\w.-]+\.\w+", text.replace("http://www.w3.org/2000/svg", ""))
        assert loaded == [], name
        assert "@import" not in text
        assert "url(" not in text
    assert "url(" not in (FOLDER / "uplot.css").read_text()


def test_what_it_asks_for_is_relative_so_that_it_works_below_any_path() -> None:
    asked = re.findall(r"(?:ask|request)\(\s*[\"`'](/?\w+)/", SCRIPT)
    assert len(asked) > 8
    assert set(asked) == {"v1"}


def test_everything_that_the_scripts_look_up_is_there(page: Page) -> None:
    looked_up = set(re.findall(r"\$\(\"([\w-]+)\"\)", SCRIPT))
    assert looked_up
    made = set(re.findall(r"id: \"([\w-]+)\"", SCRIPT)) | {
        f"chart-{name}" for name in re.findall(r'card\("(\w+)"\)', SCRIPT)
    }
    assert looked_up <= set(page.ids) | made


def test_the_token_stays_in_the_tab_and_out_of_addresses() -> None:
    assert "sessionStorage" in SCRIPT
    for elsewhere in ("localStorage", "document.cookie", "indexedDB", "location.hash", "location.search", "?token"):
        assert elsewhere not in SCRIPT
    assert SCRIPT.count("Authorization") == 1
    assert '<input id="token" type="password" autocomplete="off"' in HTML


def test_text_from_processes_is_never_html_nor_code(page: Page) -> None:
    for risky in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "srcdoc"):
        assert risky not in SCRIPT
    assert page.styled == [], "the policy forbids inline styles and handlers"


def test_files_stay_small_enough_to_be_read() -> None:
    assert {name: text.count("\n") for name, text in OURS.items() if text.count("\n") > 300} == {}


def test_each_is_served_with_a_policy_that_forbids_the_outside(config: Config) -> None:
    with TestClient(create_app(config), base_url="http://127.0.0.1") as http:
        assert http.get("/").text == HTML
        for path in ("/", *(f"/page/{name}" for name in NAMES)):
            answer = http.get(path)
            assert answer.status_code == 200
            policy = answer.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'")
            for closed in ("frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'"):
                assert closed in policy
            assert "unsafe" not in policy + " " + "http" * ("http" in policy)
            assert answer.headers["x-content-type-options"] == "nosniff"
        assert http.get("/page/uplot.LICENSE.txt").status_code in (401, 404), "no other file of the folder"
        assert http.get("/page/../app.py").status_code in (401, 404)


def test_a_file_that_has_not_changed_is_not_sent_again(config: Config) -> None:
    with TestClient(create_app(config), base_url="http://127.0.0.1") as http:
        first = http.get("/page/app.js")
        again = http.get("/page/app.js", headers={"if-none-match": first.headers["etag"]})
        other = http.get("/page/app.js", headers={"if-none-match": '"other"'})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    assert (other.status_code, other.content) == (200, first.content)
    assert first.headers["cache-control"] == "no-cache", "asked for again, never used blindly"


def test_the_wheel_carries_all_of_it_and_the_charting_librarys_licence() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["services.control_plane"]
    carried = {path for pattern in patterns for path in FOLDER.parent.glob(pattern)}
    assert set(FOLDER.iterdir()) <= carried
    licence = FOLDER / "uplot.LICENSE.txt"
    assert str(licence.relative_to(ROOT)) in project["project"]["license-files"]
    assert "Permission is hereby granted" in licence.read_text()
