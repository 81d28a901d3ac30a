"""A dashboard as Grafana wants it, from a short description: rows of panels, each with its queries."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import Literal

from grafana_foundation_sdk.builders import common, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.builders import dashboard as sdk
from grafana_foundation_sdk.models import common as looks
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import heatmap as heatmaps
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
_METRIC = re.compile(r"\b(trustbatch[_:][\w:]+|ALERTS)(\{)?")

Kind = Literal["lines", "log lines", "number", "heatmap"]


@dataclass(frozen=True)
class Query:
    """One expression; `legend` names its lines, `{{label}}` stands for a label's value."""

    expr: str
    legend: str
    empty_unless: str = ""  # why a healthy run may have nothing here

    @property
    def of_the_run(self) -> str:
        """The expression for the namespaces that the reader chose; without namespaces all that there is."""
        return _METRIC.sub(
            lambda m: m[1] + '{namespace=~"$namespace"' + (", " if m[2] else "}"),
            self.expr,
        )


@dataclass(frozen=True)
class Panel:
    """One picture."""

    title: str
    unit: str  # of Grafana: short, none, percentunit, bytes, s, dtdurations, ops ...
    description: str
    queries: tuple[Query, ...]
    kind: Kind = "lines"
    width: int = 8  # of 24

    @property
    def empty_unless(self) -> str:
        """Why it may show nothing at all in a healthy run; '' where it always shows something."""
        return self.queries[0].empty_unless if all(query.empty_unless for query in self.queries) else ""


@dataclass(frozen=True)
class Board:
    """One dashboard."""

    uid: str
    title: str
    description: str
    rows: tuple[tuple[str, tuple[Panel, ...]], ...]

    @property
    def panels(self) -> list[Panel]:
        """All of them, in order."""
        return [panel for _, panels in self.rows for panel in panels]


def panel(
    title: str,
    unit: str,
    description: str,
    *queries: tuple[str, str] | Query,
    kind: Kind = "lines",
    width: int = 8,
    unless: str = "",
) -> Panel:
    """A panel with its queries as (expression, legend); `unless` says why they may all be empty."""
    return Panel(
        title,
        unit,
        description,
        tuple(query if isinstance(query, Query) else Query(*query, unless) for query in queries),
        kind,
        width,
    )


def quantiles(histogram: str) -> tuple[tuple[str, str], tuple[str, str]]:
    """Median and 95 % of a histogram, over all processes."""
    buckets = f"sum by (le) (rate({histogram}_bucket[$__rate_interval]))"
    return (f"histogram_quantile(0.5, {buckets})", "median"), (f"histogram_quantile(0.95, {buckets})", "95 %")


def mean(histogram: str, by: str = "") -> str:
    """Mean of what a histogram has counted lately, for each value of a label; nothing where nothing was."""
    total = f"sum{f' by ({by}) ' if by else ''}(rate({histogram}_%s[$__rate_interval]))"
    return f"{total % 'sum'} / ({total % 'count'} > 0)"


def dashboard(board: Board) -> models.Dashboard:
    """The dashboard as Grafana's own types have it."""
    built = (
        sdk.Dashboard(board.title)
        .uid(board.uid)
        .description(board.description)
        .tags(["trustbatch"])
        .readonly()
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .time("now-1h", "now")
        .refresh("10s")
        .with_variable(sdk.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .with_variable(_namespaces())
        .link(sdk.DashboardLink("").type(models.DashboardLinkType.DASHBOARDS).tags(["trustbatch"]).keep_time(True))
    )
    numbers = itertools.count(1)
    for row, panels in board.rows:
        built.with_row(sdk.Row(row).id(next(numbers)))
        for described in panels:
            built.with_panel(_panel(described, next(numbers)))
    return built.build()


def _namespaces() -> sdk.QueryVariable:
    """One run has one namespace; outside Kubernetes there are none, and all is everything."""
    return (
        sdk.QueryVariable("namespace")
        .label("Namespace")
        .datasource(SOURCE)
        .query("label_values(trustbatch_redis_up, namespace)")
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .include_all(True)
        .all_value(".*")
        .current(models.VariableOption(selected=True, text="All", value="$__all"))
    )


def _panel(described: Panel, number: int) -> stat.Panel | timeseries.Panel | heatmap.Panel:
    built = _picture(described)
    built.id(number).title(described.title).description(_text(described)).unit(described.unit).datasource(SOURCE)
    built.span(described.width).height(4 if described.kind == "number" else 8)
    for place, query in enumerate(described.queries):
        target = prometheus.Dataquery().expr(query.of_the_run).legend_format(query.legend).ref_id(chr(ord("A") + place))
        if described.kind == "number":
            target.instant()
        else:
            target.range()
        if described.kind == "heatmap":
            target.format(PromQueryFormat.HEATMAP)
        built.with_target(target)
    return built


def _text(described: Panel) -> str:
    return described.description + (f" Empty unless {described.empty_unless}." if described.empty_unless else "")


def _picture(described: Panel) -> stat.Panel | timeseries.Panel | heatmap.Panel:
    if described.kind == "number":
        return stat.Panel().graph_mode(looks.BigValueGraphMode.NONE).text_mode(looks.BigValueTextMode.VALUE_AND_NAME)
    if described.kind == "heatmap":
        colors = heatmap.HeatmapColorOptions().scheme("Blues").mode(heatmaps.HeatmapColorMode.SCHEME)
        everywhere = common.HideSeriesConfig().tooltip(False).legend(False).viz(False)
        return heatmap.Panel().calculate(False).color(colors).hide_from(everywhere)
    lines = timeseries.Panel().line_width(1).show_points(looks.VisibilityMode.NEVER)
    legend = common.VizLegendOptions().show_legend(True).display_mode(looks.LegendDisplayMode.LIST)
    lines.legend(legend.placement(looks.LegendPlacement.BOTTOM).calcs(["lastNotNull"]))
    if described.kind == "log lines":
        lines.scale_distribution(common.ScaleDistributionConfig().type(looks.ScaleDistribution.LOG).log(10))
    return lines
