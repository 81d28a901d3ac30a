"""The page in a real Chromium, of a real control plane on a real Redis that holds what a learner would write."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Browser, Page, expect

from services.eyes import Eyes, HttpSource
from services.top import told
from tests.page import run
from tests.page.showing import live, newest, train, until
from tests.page.stack import Stack, chromium, open_stack

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(chromium() is None, reason="no Chromium: deploy/chromium/fetch.sh installs it where it can"),
]

TOKEN = "0123456789abcdef"


def test_the_verdict_its_parts_and_every_chart_are_there_at_once(stack: Stack, open_page: Callable[..., Page]) -> None:
    page = live(stack, open_page)
    expect(page.locator("#level")).to_have_text("Good")
    expect(page.locator("#sentence")).to_contain_text(re.compile(r"^Trusted: ESS \.\d+; staleness \d+, floor \.\d+\.$"))
    expect(page.locator("#shape svg")).to_have_class("shape-good")
    expect(page.locator("#parts > div")).to_have_count(4)
    for chart in ("reward", "ess", "ratios", "staleness", "time", "any"):
        expect(page.locator(f"#chart-{chart} canvas")).to_be_visible()
    expect(page.locator("#chart-buckets .bucket").first).to_contain_text("of tokens")
    expect(page.locator("#numbers")).to_contain_text("Held-out accuracy")
    expect(page.locator("#members li")).to_have_count(5)  # with this control plane
    expect(page.locator("#events li")).not_to_have_count(0)


def test_the_terminal_says_the_same_over_http_as_the_page(stack: Stack, open_page: Callable[..., Page]) -> None:
    page = live(stack, open_page)
    eyes = Eyes(HttpSource(stack.plane.address))
    eyes.look()
    assert eyes.trouble is None
    expect(page.locator("#sentence")).to_have_text(eyes.verdict.sentence)
    assert (told(eyes)["numbers"]["step"], told(eyes)["numbers"]["steps"]) == (newest(stack), 600)


def test_new_steps_events_and_verdicts_arrive_without_a_reload(stack: Stack, open_page: Callable[..., Page]) -> None:
    page = live(stack, open_page)
    page.evaluate("window.kept = true")
    number = train(stack, reward_mean=0.123)
    expect(page.locator("#steps")).to_have_text(f"step {number} of 600")
    expect(page.locator("#numbers > div").first).to_contain_text(".123")
    expect(page.locator("#chart-reward .legend")).to_contain_text("reward.123")
    stack.control.add_event("sync", "<img src=x onerror=alert(1)>", "rollout:r1")
    expect(page.locator("#events li").first).to_contain_text("<img src=x onerror=alert(1)>")
    assert page.locator("#events img").count() == 0, "text is text"
    for _ in range(8):
        train(stack, token_ess=0.31, top_1_percent_mass=0.61)
    expect(page.locator("#level")).to_have_text("Bad")
    expect(page.locator("#sentence")).to_contain_text("1 % of the tokens carry 61 % of the weight")
    expect(page.locator("#shape svg")).to_have_class("shape-bad")
    for _ in range(8):
        train(stack)
    expect(page.locator("#level")).to_have_text("Good")
    assert page.evaluate("window.kept") is True


def test_the_dial_of_one_server_turns_its_lag(stack: Stack, open_page: Callable[..., Page]) -> None:
    page = live(stack, open_page, expected="422")
    dial = page.get_by_label("Lag asked of r1", exact=True)
    expect(dial).to_have_value("2")
    dial.fill("6")
    train(stack)  # what is being typed stays while the page goes on
    expect(page.locator("#steps")).to_contain_text(f"step {newest(stack)}")
    expect(dial).to_have_value("6")
    dial.press("Enter")
    expect(page.locator("#dial-said")).to_contain_text("r1: asked to lag by 6")
    assert b'"r1"' in stack.control.lag_wish().text
    run.beat(stack.control, newest(stack), r1={"lag": 6, "lag_served": 6})
    expect(page.locator("#servers tr").nth(1).locator("td").nth(1)).to_have_text("6")
    dial.fill("99")
    dial.press("Enter")
    expect(page.locator("#dial-said")).to_contain_text("this run keeps versions for at most 8")


def test_a_click_on_a_chart_opens_the_groups_behind_its_step(stack: Stack, open_page: Callable[..., Page]) -> None:
    number = train(stack)
    stack.control.add_examples(number, run.examples(number), 1, 2**20)
    page = live(stack, open_page)
    page.locator("#chart-ess .plot").focus()
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    dialog = page.locator("#groups")
    expect(dialog).to_be_visible()
    expect(dialog).to_contain_text(f"Groups behind step {number}")
    expect(dialog.locator(".group")).to_have_count(1)
    expect(dialog.locator(".prompt")).to_have_text("Spell <b>backward</b>: stream")
    assert dialog.locator("b", has_text="backward").count() == 0, "a prompt is text"
    token = dialog.locator(".token").nth(1)
    expect(token).to_have_class(re.compile("up5"))
    token.hover()
    expect(dialog.locator(".tell").first).to_contain_text('token 2: "m" · ratio \u00d77.39 · log ratio 2 nats')
    dialog.locator(".token").first.focus()
    page.keyboard.press("ArrowRight")
    expect(token).to_be_focused()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(page.locator("#chart-ess .plot")).to_be_focused()
    box = page.locator("#chart-reward .u-over").bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + 5, box["y"] + 20)
    expect(dialog).to_contain_text("The nearest steps of which some are:")
    dialog.get_by_role("button", name=f"step {number}").click()
    expect(dialog.locator(".group")).to_have_count(1)


def test_a_drag_zooms_every_chart_and_a_double_click_shows_all(stack: Stack, open_page: Callable[..., Page]) -> None:
    page = live(stack, open_page)
    plot = page.locator("#chart-staleness .plot")
    before = plot.screenshot()
    box = page.locator("#chart-reward .u-over").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 50, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + 150, box["y"] + 40, steps=4)
    page.mouse.up()
    until(lambda: plot.screenshot() != before)
    expect(page.locator("#groups")).to_be_hidden()
    zoomed = plot.screenshot()
    plot.locator(".u-over").dblclick(position={"x": 5, "y": 5})
    until(lambda: plot.screenshot() != zoomed)
    expect(page.locator("#groups")).to_be_hidden()


def test_range_and_scale_are_chosen(stack: Stack, open_page: Callable[..., Page]) -> None:
    page = live(stack, open_page)
    ess = page.locator("#chart-ess .plot")
    before = ess.screenshot()
    page.get_by_label("ESS scale").select_option("linear")
    until(lambda: ess.screenshot() != before)
    with page.expect_response(lambda answer: "since=" in answer.url) as asked:
        page.get_by_label("Range").select_option("last 10 minutes")
    assert asked.value.ok
    expect(page.locator("#chart-ess canvas")).to_be_visible()
    with page.expect_response(lambda answer: "name=grad_norm" in answer.url) as asked:
        page.get_by_label("Any metric", exact=True).select_option("grad_norm")
    assert asked.value.ok
    expect(page.locator("#chart-any .legend")).to_contain_text("grad_norm")


def test_another_run_is_drawn_dashed_beside_this_one(stack: Stack, open_page: Callable[..., Page]) -> None:
    page = live(stack, open_page)
    page.get_by_label("Compare with").select_option("another")
    expect(page.locator("#chart-reward .legend")).to_contain_text("reward, another")
    expect(page.locator("#chart-ess .legend i.dashed").first).to_be_visible()


def test_it_says_that_the_control_plane_is_gone_and_comes_back_by_itself(
    stack: Stack, open_page: Callable[..., Page]
) -> None:
    page = live(stack, open_page, expected="ERR_(CONNECTION_REFUSED|CONNECTION_RESET|INCOMPLETE)")
    stack.plane.stop()
    expect(page.locator("#link")).to_have_text("disconnected")
    expect(page.locator("#sentence")).to_contain_text("The control plane has not answered for")
    expect(page.locator("#sentence")).to_contain_text("Trying again")
    expect(page.locator("#toggle")).to_be_disabled()
    stack.plane.start()
    number = train(stack)
    expect(page.locator("#link")).to_have_text("live")
    expect(page.locator("#steps")).to_contain_text(f"step {number} ")
    expect(page.locator("#level")).to_have_text("Good")


def test_where_no_stream_comes_through_it_asks(stack: Stack, open_page: Callable[..., Page], browser: Browser) -> None:
    run.beat(stack.control, newest(stack))
    page = open_page("about:blank", expected="404")
    page.route("**/v1/live", lambda route: route.fulfill(status=404, json={"detail": "no stream here"}))
    page.goto(stack.plane.address)
    expect(page.locator("#link")).to_have_text("asking every 2 s")
    number = train(stack)
    expect(page.locator("#steps")).to_contain_text(f"step {number} ")


def test_where_too_many_listen_it_asks_until_a_place_is_free(stack: Stack, open_page: Callable[..., Page]) -> None:
    run.beat(stack.control, newest(stack))
    page = open_page("about:blank", expected="503")
    full = {"status": 503, "headers": {"Retry-After": "1"}, "json": {"detail": "too many listen"}}
    page.route("**/v1/live", lambda route: route.fulfill(**full))
    page.goto(stack.plane.address)
    expect(page.locator("#link")).to_have_text("asking every 2 s")
    page.unroute("**/v1/live")
    expect(page.locator("#link")).to_have_text("live")


def test_pause_and_resume(stack: Stack, open_page: Callable[..., Page]) -> None:
    page = live(stack, open_page)
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#phase")).to_have_text("paused")
    assert stack.control.paused()
    page.get_by_role("button", name="Resume").click()
    expect(page.locator("#phase")).to_have_text("running")
    assert not stack.control.paused()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(stack: Stack, open_page: Callable[..., Page], scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    number = train(stack)
    stack.control.add_examples(number, run.examples(number), 1, 2**20)
    page = live(stack, open_page, color_scheme=scheme)
    for dialog in (False, True):
        if dialog:
            page.locator("#chart-ess .plot").press("Enter")
            expect(page.locator("#groups .group")).to_have_count(1)
        found = Axe().run(page).response["violations"]
        serious = [(v["id"], [n["html"] for n in v["nodes"]]) for v in found if v["impact"] in ("serious", "critical")]
        assert serious == [], f"dialog: {dialog}"


def test_everything_is_reached_by_the_tab_key_and_shows_that_it_is(
    stack: Stack, open_page: Callable[..., Page]
) -> None:
    page = live(stack, open_page)
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        found = page.evaluate(
            "() => { const e = document.activeElement, s = getComputedStyle(e);"
            " return [e.id || e.getAttribute('aria-label') || e.textContent, s.outlineStyle, e.tagName]; }"
        )
        if found[2] == "BODY":
            break
        reached.append(found)
    names = [name for name, _, _ in reached]
    wanted = [
        "toggle",
        "range",
        "compare",
        "scale",
        "Effective sample size, by step",
        "Ratios over time, by step",
        "any",
    ]
    wanted += ["Lag asked of r0", "Lag asked of all servers", "Drain r0", "metrics"]
    assert [name for name in wanted if name not in names] == []
    assert [name for name, outline, _ in reached if outline == "none"] == [], "focus is seen"


def test_a_phone_shows_all_of_it_without_scrolling_sideways(stack: Stack, open_page: Callable[..., Page]) -> None:
    page = live(stack, open_page, width=375, device_scale_factor=2, is_mobile=True, has_touch=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 375
    for part in ("#sentence", "#parts", "#chart-ess canvas", "#chart-ratios canvas", "#servers-card", "#events"):
        box = page.locator(part).bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 375, part


def test_a_run_that_nobody_has_begun_says_so(stack: Stack, open_page: Callable[..., Page]) -> None:
    with open_stack("empty") as other:
        other.plane.start()
        page = open_page(other.plane.address)
        expect(page.locator("#sentence")).to_have_text("Starting: neither learner nor rollout server has reported yet.")
        expect(page.locator("#level")).to_have_text("Idle")
        expect(page.locator("#chart-reward .empty")).to_have_text("no data yet")
        expect(page.locator("#servers")).to_contain_text("no rollout server is there yet")
        page.close()


def test_without_a_token_it_asks_for_one_and_without_redis_it_says_what_is_wrong(
    open_page: Callable[..., Page],
) -> None:
    settings = (f"control_plane.operate_token={TOKEN}{TOKEN}", f"control_plane.read_token={TOKEN}read")
    with open_stack("closed", *settings) as other:
        run.write(other.client, "closed", 12)
        other.plane.start()
        refused = Eyes(HttpSource(other.plane.address))
        refused.look()
        assert "asks for a token: give one of its tokens as TRUSTBATCH__CONTROL_PLANE__READ" in refused.verdict.sentence
        page = open_page(other.plane.address, expected="401|503")
        expect(page.locator("#sentence")).to_have_text("This control plane asks for a token.")
        page.get_by_label("Access token").fill("wrong-wrong-wrong")
        page.get_by_role("button", name="Open").click()
        expect(page.locator("#sentence")).to_have_text("This token is not known here.")
        page.get_by_label("Access token").fill(f"{TOKEN}read")
        page.get_by_label("Access token").press("Enter")
        expect(page.locator("#sentence")).to_contain_text("Trusted")
        expect(page.locator("#servers tr")).to_have_count(4)
        expect(page.locator("#toggle")).to_be_hidden()
        assert page.get_by_label("Lag asked of all servers").is_hidden(), "who may look is offered nothing else"
        assert TOKEN not in page.url
        other.redis.kill()
        expect(page.locator("#level")).to_have_text("No data")
        expect(page.locator("#link")).to_have_text("no data")
        expect(page.locator("#sentence")).to_contain_text("Redis cannot be reached")
        other.redis.start()
        run.write(other.client, "closed", 13)
        expect(page.locator("#sentence")).to_contain_text("Trusted")
        expect(page.locator("#link")).to_have_text("live")
        page.close()
