"""Versions across restarts."""

from itertools import islice

from learner.lineage import START, Lineage, Segment


def test_without_a_restart_staleness_is_the_difference_of_versions() -> None:
    lineage = Lineage()
    for _ in range(5):
        lineage = lineage.advanced()
    assert lineage.latest == 5
    assert [lineage.staleness(version) for version in range(6)] == [5, 4, 3, 2, 1, 0]
    assert list(lineage.ancestors(3)) == [3, 2, 1, 0]
    assert 0 in lineage
    assert 6 not in lineage


def test_a_restored_version_is_as_old_as_the_one_whose_weights_it_has() -> None:
    lineage = Lineage((START,), 10).restored(10, 20, {})
    assert lineage.staleness(20) == 0
    assert lineage.staleness(10) == 0
    assert lineage.staleness(8) == 2
    assert lineage.staleness(19) == 0, "an abandoned version that went further is not behind"
    assert list(islice(lineage.ancestors(20), 4)) == [20, 10, 9, 8]
    later = lineage.advanced().advanced()
    assert later.staleness(10) == 2
    assert later.staleness(11) == 1
    assert later.staleness(12) == 0
    assert [v in later for v in (22, 20, 19, 11, 10, 0)] == [True, True, False, False, True, True]


def test_branches_that_no_checkpoint_knows_are_taken_from_the_published_parents() -> None:
    parents = {0: -1, 10: 9, 20: 10, 21: 20, 25: 24}
    lineage = Lineage((START,), 10).restored(10, 26, parents)
    assert lineage.segments == (START, Segment(20, 10, 10), Segment(26, 10, 10))
    assert lineage.depth(25) == 15
    assert 25 not in lineage
    assert list(islice(lineage.ancestors(26), 2)) == [26, 10]


def test_restores_of_restores_keep_counting() -> None:
    lineage = Lineage((START,), 4).restored(4, 8, {})
    for _ in range(3):
        lineage = lineage.advanced()
    assert (lineage.latest, lineage.depth(11)) == (11, 7)
    again = Lineage(lineage.segments, 10).restored(10, 12, {})
    assert again.depth(12) == 6
    assert [v in again for v in (12, 11, 10, 8, 5, 4)] == [True, False, True, True, False, True]
