"""Which published versions the weights descend from, across restarts.

    0 - 1 - ... - 10 - 11 - ... - 19        abandoned after 10: the learner died, checkpoint 10 was restored
                   `- 20 - 21 - ...         20 has the weights of 10

`depth` counts the publishes from the starting model along a version's own ancestry, so 20 is as deep as 10.
Without a restart it is the policy_version itself.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Segment:
    """Versions from `first` on, up to the next segment's first; each but `first` has its predecessor as parent."""

    first: int
    parent: int  # of `first`; -1 for the starting model
    depth: int  # of `first`


START = Segment(0, -1, 0)


class Lineage:
    """The ancestry of the latest version, and the branches that were abandoned."""

    def __init__(self, segments: Sequence[Segment] = (START,), latest: int = 0) -> None:
        self.segments = tuple(segments)
        self.latest = latest
        self._firsts = [segment.first for segment in self.segments]

    def advanced(self) -> Lineage:
        """The lineage after one more publish."""
        return Lineage(self.segments, self.latest + 1)

    def restored(
        self, parent: int, new_version: int, parents: Mapping[int, int], same: Collection[int] = ()
    ) -> Lineage:
        """The lineage after `parent`'s weights were published again as `new_version`.

        Args:
            parent: the version whose weights were restored.
            new_version: above every version that was ever published.
            parents: version -> parent, of published versions; tells of branches that no checkpoint knows.
            same: versions that have their parent's weights; needed where that is the version right before them.

        """
        segments = {segment.first: segment for segment in self.segments}
        branches = {version: p for version, p in parents.items() if p not in (version - 1, -1) or version in same}
        known = Lineage(self.segments, self.latest)
        for version, branch_parent in sorted({**branches, new_version: parent}.items()):
            segments[version] = Segment(version, branch_parent, known.depth(branch_parent))
            known = Lineage([segments[first] for first in sorted(segments)], version)
        return known

    def depth(self, version: int) -> int:
        """Publishes between the starting model and a version, along its ancestry."""
        segment = self._segment(version)
        return segment.depth + version - segment.first

    @property
    def copies(self) -> frozenset[int]:
        """The versions that restores published: each has its parent's weights."""
        return frozenset(segment.first for segment in self.segments if segment.parent >= 0)

    def staleness(self, version: int) -> int:
        """Versions by which the latest is ahead of this one; 0 for an abandoned one that went further."""
        return max(0, self.depth(self.latest) - self.depth(version))

    def ancestors(self, version: int) -> Iterator[int]:
        """A version, its parent, and so on down to the starting model."""
        while version >= 0:
            segment = self._segment(version)
            yield from range(version, segment.first - 1, -1)
            version = segment.parent

    def __contains__(self, version: int) -> bool:
        """True if the latest version descends from this one, or is it."""
        at = self.latest
        while at > version:
            segment = self._segment(at)
            at = version if segment.first <= version else segment.parent
        return at == version

    def _segment(self, version: int) -> Segment:
        return self.segments[bisect_right(self._firsts, max(version, 0)) - 1]
