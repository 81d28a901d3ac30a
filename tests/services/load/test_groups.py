"""Made-up groups: what a learner takes, and what it must not."""

from __future__ import annotations

import numpy as np
import pytest

from learner.lineage import START, Lineage
from learner.screening import Refused, Rules, screen
from services.load.groups import POISONS, Shape, make_group, poisoned, prompt_of
from shared.codec import decode_group, encode_group
from shared.errors import DecodeError
from shared.stream import Entry
from shared.types import Group

SHAPE = Shape(group_size=4, tokens=8, poison_every=10)
RULES = Rules(run_id="run", vocab_size=256, max_tokens=4096, max_staleness=0, lineage=Lineage((START,), 3))


def made(index: int = 77_777) -> Group:
    return make_group("run", index, 3, "load0", SHAPE, 1.0)


def screened(payload: bytes, index: int = 77_777) -> Group | Refused:
    return screen(Entry("1-1", f"run:{index}", index, payload, ""), RULES)


def test_a_good_group_passes_the_learners_own_screening() -> None:
    assert isinstance(screened(encode_group(made())), Group)


def test_the_prompt_spells_its_index() -> None:
    for index in (0, 255, 256, 77_777, 2**32 - 1):
        assert sum(int(digit) * 256**place for place, digit in enumerate(prompt_of(index))) == index


def test_rewards_differ_within_a_group_and_repeat_the_token() -> None:
    group = made()
    assert [t.reward for t in group.trajectories] == [0.0, 1.0, 0.0, 1.0]
    assert all((t.token_ids == t.reward).all() for t in group.trajectories)


@pytest.mark.parametrize("poison", POISONS)
def test_every_poison_is_refused_by_name_and_none_is_believed(poison: str) -> None:
    payload = poisoned(made(), poison)
    assert len(payload) < 4096
    refused = screened(payload)
    assert isinstance(refused, Refused)
    assert refused.dead_letter
    assert refused.reason == ("bad_logprobs" if poison == "nan" else "undecodable")
    if poison == "nan":
        assert np.isnan(decode_group(payload).trajectories[0].behavior_logprobs).any()
    else:
        with pytest.raises(DecodeError):
            decode_group(payload)


def test_poison_comes_at_its_rate_and_every_kind_in_turn() -> None:
    kinds = [kind for index in range(100) if (kind := SHAPE.poison_of(index))]
    assert len(kinds) == 10
    assert set(kinds) == set(POISONS)
    assert not any(Shape(2, 1).poison_of(index) for index in range(100))


def test_an_unknown_poison_is_an_error() -> None:
    with pytest.raises(ValueError, match="none of"):
        poisoned(made(), "arsenic")
