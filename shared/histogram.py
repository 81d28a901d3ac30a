"""Histograms that take a step's millions of tokens at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from prometheus_client.core import HistogramMetricFamily

VERSIONS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256)

_NATS = tuple(part / 1024 for part in (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024))
_NATS = (*_NATS, 1.5, 2.0, 4.0)
LOG_RATIO_EDGES = (*(-edge for edge in reversed(_NATS)), *_NATS)
"""Between the 41 bins of a step's log ratios, nats: powers of two and one and a half of them, finer near 0."""


class CountedHistogram:
    """A histogram whose counts come already sorted into its bins. Where a bound is negative it has no sum."""

    def __init__(self, name: str, text: str, bounds: Sequence[float]) -> None:
        self._name = name
        self._text = text
        self._bounds = [str(float(bound)) for bound in bounds] + ["+Inf"]
        self._counts = [0] * len(self._bounds)  # replaced whole: a scrape reads in another thread

    def observe(self, counts: Sequence[int]) -> None:
        """Adds so many values in each bin."""
        self._counts = [before + more for before, more in zip(self._counts, counts, strict=True)]

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """What prometheus_client asks for at every scrape."""
        buckets = list(zip(self._bounds, accumulate(self._counts), strict=True))
        yield HistogramMetricFamily(self._name, self._text, buckets=buckets, sum_value=None)


class VersionsHistogram:
    """Versions of every trained token; a step's millions of them are counted by value, not one by one."""

    def __init__(self, name: str, text: str, label: str = "") -> None:
        self._name = name
        self._text = text
        self._label = label
        self._counts: dict[str, dict[int, int]] = {}  # by the label's value; '' where there is none

    def observe(self, values: Iterable[int], counts: Iterable[int], label: str = "") -> None:
        """Adds so many tokens of each number of versions."""
        counted = dict(self._counts.get(label, {}))
        for value, count in zip(values, counts, strict=True):
            counted[int(value)] = counted.get(int(value), 0) + int(count)
        self._counts = {**self._counts, label: counted}  # replaced whole: a scrape reads in another thread

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """What prometheus_client asks for at every scrape."""
        labels = [self._label] if self._label else []
        family = HistogramMetricFamily(self._name, self._text, labels=labels)
        for label, counts in (self._counts or ({} if labels else {"": {}})).items():
            upto = [(f"{float(bound)}", sum(n for value, n in counts.items() if value <= bound)) for bound in VERSIONS]
            buckets = [*upto, ("+Inf", sum(counts.values()))]
            total = sum(value * n for value, n in counts.items())
            family.add_metric([label] if labels else [], buckets=buckets, sum_value=total)
        yield family
