"""From the table to a registry: every metric is made once, by its name in the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from shared.histogram import CountedHistogram, VersionsHistogram
from shared.metrics.table import PREFIX, Metric


@dataclass(frozen=True)
class RedisCounters:
    """What a process counts of its Redis."""

    outages: Counter
    retries: Counter
    left_out: Counter


class Made:
    """Makes the metrics of one process."""

    def __init__(self, table: Sequence[Metric]) -> None:
        self.registry = CollectorRegistry()
        self._table = {metric.name: metric for metric in table}

    def counter(self, name: str, *begun: str) -> Counter:
        """The counter of this name; label values in `begun` are there from the start, so that 1 is an increase."""
        metric = self._of("counter", name)
        made = Counter(PREFIX + name, metric.text, metric.labels, registry=self.registry)
        for value in begun:
            made.labels(value)
        return made

    def gauge(self, name: str) -> Gauge:
        """The gauge of this name."""
        metric = self._of("gauge", name)
        return Gauge(PREFIX + name, metric.text, metric.labels, registry=self.registry)

    def histogram(self, name: str) -> Histogram:
        """The histogram of this name."""
        metric = self._of("histogram", name)
        return Histogram(PREFIX + name, metric.text, metric.labels, registry=self.registry, buckets=metric.buckets)

    def counted(self, name: str, bounds: Sequence[float]) -> CountedHistogram:
        """The histogram of this name, of many tokens at once, between these bounds."""
        metric = self._of("histogram", name)
        made = CountedHistogram(PREFIX + name, metric.text, bounds)
        self.registry.register(made)
        return made

    def versions(self, name: str) -> VersionsHistogram:
        """The histogram of this name, of many tokens' versions at once."""
        metric = self._of("histogram", name)
        made = VersionsHistogram(PREFIX + name, metric.text, "".join(metric.labels))
        self.registry.register(made)
        return made

    def of_redis(self) -> RedisCounters:
        """What a process counts of its Redis."""
        return RedisCounters(*(self.counter(f"redis_{name}") for name in ("outages", "retries", "left_out")))

    def of_rows(self) -> dict[str, Gauge]:
        """The gauges that show a number of the newest step, by the number's name there (`by_server.token_ess`)."""
        return {metric.field: self.gauge(name) for name, metric in self._table.items() if metric.field}

    def _of(self, kind: str, name: str) -> Metric:
        metric = self._table[name]
        if metric.kind != kind:
            raise TypeError(f"{name} is a {metric.kind}, not a {kind}")
        return metric


def set_parts(gauges: Mapping[str, Gauge], label: str, values: Mapping[str, Any]) -> None:
    """Sets gauges with one label from the numbers of one part of a step."""
    for name, gauge in gauges.items():
        if values.get(name) is not None:
            gauge.labels(label).set(values[name])
