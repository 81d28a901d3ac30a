"""Lineage over random histories of publishes, checkpoints and crashes, against a plain table of who came from whom."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from learner.lineage import Lineage, Segment

HISTORIES = st.lists(
    st.sampled_from(["publish", "publish", "publish", "checkpoint", "crash", "fall back", "torn publish"]), max_size=60
)


@dataclass
class Run:
    """What is true, and what the learner knows of it."""

    lineage: Lineage = field(default_factory=Lineage)
    parents: dict[int, int] = field(default_factory=lambda: {0: -1})  # of every published version
    depths: dict[int, int] = field(default_factory=lambda: {0: 0})
    same: set[int] = field(default_factory=set)  # those that have their parent's weights
    highest: int = 0  # number that anybody ever began to publish
    saved: list[tuple[tuple[Segment, ...], int]] = field(default_factory=list)  # of the checkpoints
    order: list[int] = field(default_factory=lambda: [0])

    def do(self, act: str) -> None:
        if act == "publish":
            self.publish(self.lineage.latest, 1, self.lineage.advanced())
        elif act == "checkpoint":
            self.saved.append((self.lineage.segments, self.lineage.latest))
        elif act == "torn publish":
            self.highest = max(self.highest, self.lineage.latest + 1)
            self.restore()
        elif act == "fall back" and self.saved:
            self.saved.pop()
            self.restore()
        else:
            self.restore()

    def restore(self) -> None:
        """As `learner.startup.restore` goes on from the newest checkpoint, or from the starting model."""
        segments, latest = self.saved[-1] if self.saved else (Lineage().segments, 0)
        restored = Lineage(segments, latest).restored(latest, self.highest + 1, self.parents, self.same)
        self.publish(latest, 0, restored)

    def publish(self, parent: int, steps: int, lineage: Lineage) -> None:
        version = lineage.latest
        assert version > max(self.order), "published versions go on counting"
        self.parents[version] = parent
        if not steps:
            self.same.add(version)
        self.depths[version] = self.depths[parent] + steps
        self.lineage, self.highest = lineage, version
        self.order.append(version)

    def ancestry(self) -> list[int]:
        found = [self.lineage.latest]
        while self.parents[found[-1]] >= 0:
            found.append(self.parents[found[-1]])
        return found


@settings(max_examples=300, deadline=None)
@given(HISTORIES)
def test_versions_go_on_counting_and_staleness_is_what_the_weights_are_apart(history: list[str]) -> None:
    run = Run()
    for act in history:
        run.do(act)
        latest = run.lineage.latest
        assert latest == max(run.order)
        assert run.lineage.staleness(latest) == 0
        for version in run.order:
            apart = max(0, run.depths[latest] - run.depths[version])
            assert run.lineage.staleness(version) == apart, f"{version} of {run.order}"


@settings(max_examples=200, deadline=None)
@given(HISTORIES)
def test_lag_walks_the_ancestry_and_abandoned_versions_are_not_in_it(history: list[str]) -> None:
    run = Run()
    for act in history:
        run.do(act)
    ancestry = run.ancestry()
    assert list(run.lineage.ancestors(run.lineage.latest)) == ancestry
    assert [version for version in run.order if version in run.lineage] == sorted(ancestry)


@settings(max_examples=200, deadline=None)
@given(HISTORIES, st.integers(0, 200))
def test_staleness_is_never_negative_whatever_version_is_asked_about(history: list[str], version: int) -> None:
    """Versions that were never published, or whose branch nobody knows any more, included."""
    run = Run()
    for act in history:
        run.do(act)
    segments, latest = run.saved[-1] if run.saved else (Lineage().segments, 0)
    forgetful = Lineage(segments, latest).restored(latest, run.highest + 1, {})
    for lineage in (run.lineage, forgetful):
        assert 0 <= lineage.staleness(version) <= lineage.latest
        assert lineage.staleness(lineage.latest) == 0
