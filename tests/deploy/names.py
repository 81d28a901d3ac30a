"""Which metrics there are, and which ones an expression asks for."""

from __future__ import annotations

import functools
import re

from prometheus_client import Metric

from shared.metrics import ControlPlaneMetrics, LearnerMetrics, RolloutMetrics

_SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
_QUOTED = re.compile(r'"[^"]*"')
_NAME = re.compile(r"\b(?:trustbatch[_:][\w:]+|up\b|ALERTS\b)")


@functools.cache
def exported() -> frozenset[str]:
    """Names of all samples that any process may show."""
    owners = (LearnerMetrics(), RolloutMetrics(), ControlPlaneMetrics())
    found: list[Metric] = [family for owner in owners for family in owner.registry.collect()]
    return frozenset(family.name + suffix for family in found for suffix in _SUFFIXES[family.type])


def metrics_of(expr: str) -> set[str]:
    """Names of the metrics in an expression."""
    return set(_NAME.findall(_QUOTED.sub("", expr)))
