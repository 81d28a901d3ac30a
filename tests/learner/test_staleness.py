"""Where staleness comes from: the parts add up for every token, whatever happened in between."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.batch import StepBatch, build_step
from learner.lineage import Lineage, Segment
from learner.staleness import arm_of, parts_of_staleness, split
from shared.types import Group, VersionSpan
from tests import builders

VERSIONS = st.integers(0, 40)


@given(drawn=VERSIONS, until_append=VERSIONS, until_step=VERSIONS, asked=VERSIONS)
def test_the_parts_are_what_happened_in_each_stretch_and_add_up(
    drawn: int, until_append: int, until_step: int, asked: int
) -> None:
    lineage = Lineage(latest=drawn + until_append + until_step)
    total = lineage.staleness(drawn)
    lag, flight, queue = split(total, until_append, asked)
    assert lag + flight + queue == total
    assert queue == until_step
    assert lag == min(asked, until_append), "what was asked for, as far as it had come about"
    assert flight == max(0, until_append - asked)


@given(total=VERSIONS, behind=st.none() | st.integers(-40, 80), asked=VERSIONS)
def test_they_add_up_and_none_is_negative_whatever_the_append_says(total: int, behind: int | None, asked: int) -> None:
    parts = split(total, behind, asked)
    assert sum(parts) == total
    assert min(parts) >= 0


def test_a_group_that_nobody_knows_the_append_of_has_waited_for_all_beyond_its_lag() -> None:
    assert split(9, None, 4) == (4, 0, 5)
    assert split(3, None, 4) == (3, 0, 0)


def spanning(*spans: tuple[int, int]) -> tuple[VersionSpan, ...]:
    """Spans of (version, tokens)."""
    ends = np.cumsum([n for _, n in spans])
    return tuple(VersionSpan(v, int(end) - n, int(end)) for (v, n), end in zip(spans, ends, strict=True))


def batch_of(*groups: Group) -> StepBatch:
    return build_step(groups, [np.array([t.reward for t in g.trajectories]) for g in groups], "group_std", 16)


def test_every_token_counts_from_its_own_version_and_every_group_from_its_own_append() -> None:
    mixed = builders.trajectory(5, versions=spanning((3, 2), (6, 3)))
    first = builders.group(0, trajectories=(mixed, builders.trajectory(4, 6, reward=1.0)), lag=2)
    second = builders.group(1, size=2, version=5)
    batch = batch_of(first, builders.with_experts(second, 1, version=5))
    parts = parts_of_staleness(batch, [8, 9], Lineage(latest=10))
    assert np.array_equal(parts.total, batch.staleness(Lineage(latest=10).staleness))
    found = {
        (int(v), int(lag), int(flight), int(queue))
        for v, lag, flight, queue in zip(
            batch.versions[batch.versions >= 0], parts.lag, parts.flight, parts.queue, strict=True
        )
    }
    assert found == {(3, 2, 3, 2), (6, 2, 0, 2), (5, 0, 4, 1)}
    assert len(parts.lag) == 5 + 4 + 3 + 4, "an expert's tokens have none"


def test_versions_are_counted_along_the_ancestry() -> None:
    """Version 20 has the weights of 10: what was drawn by 19 on the abandoned branch went further than 21 is."""
    lineage = Lineage((Segment(0, -1, 0), Segment(20, 10, 10)), latest=21)
    group = builders.group(size=2, version=9)
    parts = parts_of_staleness(batch_of(group), [20], lineage)
    assert (set(parts.flight), set(parts.queue)) == ({1}, {1})
    abandoned = parts_of_staleness(batch_of(builders.group(size=2, version=15)), [19], lineage)
    assert set(abandoned.total) == {0}
    overtaken = parts_of_staleness(batch_of(group), [19], lineage)
    assert (set(overtaken.flight), set(overtaken.queue)) == ({2}, {0}), "never more than the staleness itself"


@pytest.mark.parametrize(("lag", "arm"), [(0, "lag 0"), (2, "lag 2"), (3, "lag 3-4"), (16, "lag 9-16")])
def test_a_group_s_arm_is_the_bucket_of_the_lag_that_was_asked_for(lag: int, arm: str) -> None:
    assert arm_of(replace(builders.group(), lag=lag)) == arm


def test_the_control_arm_is_one_whatever_its_lag() -> None:
    assert arm_of(replace(builders.group(), arm="control")) == "control"
