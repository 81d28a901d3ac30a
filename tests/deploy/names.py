"""Which metrics there are, and which ones an expression asks for."""

from __future__ import annotations

import re
from typing import Any

from prometheus_client import Metric

_SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
_QUOTED = re.compile(r'"[^"]*"')
_NAME = re.compile(r"\b(?:trustbatch[_:][\w:]+|up\b|ALERTS\b)")


def exported(*metrics: Any) -> set[str]:
    """Names of all samples that the registries of these would show."""
    found: list[Metric] = [family for owner in metrics for family in owner.registry.collect()]
    return {family.name + suffix for family in found for suffix in _SUFFIXES[family.type]}


def metrics_of(expr: str) -> set[str]:
    """Names of the metrics in an expression."""
    return set(_NAME.findall(_QUOTED.sub("", expr)))
