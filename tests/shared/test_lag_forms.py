"""The text forms of a lag: what they read, what they refuse, and what they draw."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.lag_forms import MAX_LAG, parse

GOOD = [
    "0",
    "8",
    "1024",
    "uniform:0:16",
    "uniform:3:3",
    "choice:0,4*2,16",
    "choice:7",
    "geometric:0.25:16",
    "geometric:1:9",
    "0@0,8@100,16@200",
    "3@0",
    "linear:0@0,16@200,4@300",
]


@pytest.mark.parametrize("text", GOOD)
def test_every_form_is_written_as_it_is_read(text: str) -> None:
    form = parse(text)
    assert str(form) == text
    assert parse(str(form)) == form


@pytest.mark.parametrize("text", GOOD)
@given(u=st.floats(0, 1, exclude_max=True), step=st.integers(0, 10**9))
def test_no_form_leaves_its_bounds(text: str, u: float, step: int) -> None:
    form = parse(text)
    assert 0 <= form.at(u, step) <= form.largest <= MAX_LAG


def test_numbers_are_taken_to_six_digits_so_that_the_written_form_is_the_same_setting() -> None:
    for text in ("choice:4*1.0000001,5", "choice:4*0.33333333", "geometric:.99999999:4", "geometric:.1234567:4"):
        assert parse(str(parse(text))) == parse(text)


def drawn(text: str, draws: int = 10_000) -> dict[int, float]:
    """Shares of the lags over an even grid of draws."""
    form = parse(text)
    return {lag: n / draws for lag, n in sorted(Counter(form.at((i + 0.5) / draws, 0) for i in range(draws)).items())}


def test_the_distributions_are_what_they_say() -> None:
    assert drawn("uniform:2:5") == pytest.approx({2: 0.25, 3: 0.25, 4: 0.25, 5: 0.25})
    assert drawn("choice:0,4*2,16") == pytest.approx({0: 0.25, 4: 0.5, 16: 0.25})
    assert drawn("choice:0*0,4") == {4: 1.0}
    whole = 1 - 0.5**3
    expected = {0: 0.5 / whole, 1: 0.25 / whole, 2: 0.125 / whole}
    assert drawn("geometric:.5:2") == pytest.approx(expected, abs=1e-3)


def test_a_schedule_changes_at_its_steps_and_keeps_its_last_lag() -> None:
    constant, linear = parse("0@0,8@100,16@200"), parse("linear:0@0,16@200,4@300")
    assert [constant.at(0.9, step) for step in (0, 99, 100, 199, 200, 10**6)] == [0, 0, 8, 8, 16, 16]
    assert [linear.at(0.9, step) for step in (0, 6, 7, 100, 200, 250, 300, 400)] == [0, 0, 1, 8, 16, 10, 4, 4]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "from 0 to 1,024; a setting is written as 8, uniform:0:16,"),
        ("-1", "whole number from 0 to 1,024"),
        ("1025", "whole number from 0 to 1,024"),
        ("8.5", "whole number"),
        ("٣", "whole number"),
        ("unif:0:4", "a lag is written as 8, uniform:0:16"),
        ("uniform:4", "write it as uniform:LOW:HIGH"),
        ("uniform:4:2", "has 4 above 2"),
        ("uniform:0:1:2", "write it as uniform:LOW:HIGH"),
        ("choice:", "whole number"),
        ("choice:1,1", "named twice"),
        ("choice:1*0", "every weight is 0"),
        ("choice:1*-1", "a weight is a number from 0"),
        ("choice:1*nan", "a weight is a number from 0"),
        ("choice:" + ",".join(map(str, range(65))), "at most 64"),
        ("geometric:0:4", "P is above 0"),
        ("geometric:2:4", "P is a number from 0 to 1"),
        ("8@100", "put 8@0 in front"),
        ("0@0,4@5,8@5", "ascend"),
        ("0@0,4@x", "a step is a whole number"),
        ("linear:0", "a step is a whole number"),
    ],
)
def test_what_cannot_be_is_refused_with_how_it_is_written(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=r"lag|weight|step|LOW|P is|choice") as refused:
        parse(text)
    assert problem in str(refused.value)


@given(text=st.text(alphabet="0123456789:,@*.eunilchogtr -+", max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        form = parse(text)
    except ValueError:
        return
    assert parse(str(form)) == form


@pytest.mark.parametrize("text", [*GOOD, "choice:16,0,8", "uniform:6:9"])
@given(most=st.integers(0, 20), step=st.integers(0, 400))
def test_a_capped_form_asks_for_no_more_than_the_cap_and_the_form_itself(text: str, most: int, step: int) -> None:
    form, capped = parse(text), parse(text).capped(most)
    assert parse(str(capped)) == capped
    assert (capped.drawn, capped.by_step) == (form.drawn, form.by_step)
    draws = [(i + 0.5) / 60 for i in range(60)]
    ours, theirs = (sorted(f.at(u, step) for u in draws) for f in (capped, form))
    assert all(own <= min(most, other) for own, other in zip(ours, theirs, strict=True))
    assert str(form.capped(1024)) == text
