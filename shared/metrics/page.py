"""The tables of deploy/docs/metrics.md, from the table of metrics: everything below the page's MARK."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from shared.metrics.table import PARTS, PROCESSES, STEP, Metric

MARK = "<!-- From here on written by `python -m shared.metrics`; change shared/metrics/table.py instead. -->"


def generated() -> str:
    """Everything below the mark."""
    return "\n".join(_lines()) + "\n"


def rewritten(page: str) -> str:
    """The page with what is generated made anew. Raises ValueError where it has no mark."""
    if MARK not in page:
        raise ValueError(f"the page has no line {MARK!r}")
    return page.partition(MARK)[0] + MARK + "\n\n" + generated()


def write(path: Path) -> None:
    """Makes a page's generated part anew. Raises OSError, ValueError."""
    path.write_text(rewritten(path.read_text()))


def _lines() -> Iterator[str]:
    yield from ("## The newest step", "", "Gauges of the learner; the field is the number's name in the history.", "")
    yield from _table(STEP, field=True)
    yield from ("", "## Parts of the newest step", "")
    yield "Gauges of the learner with one label. A part without tokens in the newest step has none."
    yield ""
    yield from _table(PARTS, field=True)
    for process, metrics in PROCESSES.items():
        yield from ("", f"## {process.capitalize()}", "")
        yield from _table([metric for metric in metrics if not metric.field])


def _table(metrics: Sequence[Metric], field: bool = False) -> Iterator[str]:
    yield "| name | type | unit | " + ("field" if field else "labels") + " | meaning |"
    yield "|---|---|---|---|---|"
    for metric in metrics:
        third = f"`{metric.field}`" if field else ", ".join(f"`{label}`" for label in metric.labels)
        if field and metric.labels:
            third += f" by `{metric.labels[0]}`"
        cells = (f"`{metric.exported}`", metric.kind, metric.unit, third, metric.text.replace("|", "\\|"))
        yield "| " + " | ".join(cells) + " |"
