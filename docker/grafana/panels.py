"""The kinds of panels that the dashboards are made of, each with a unit, a legend, thresholds and a description."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grafana_foundation_sdk.builders import barchart, common, stat, table, timeseries, xychart
from grafana_foundation_sdk.builders.dashboard import (
    Dashboard,
    DatasourceVariable,
    FieldColor,
    QueryVariable,
    ThresholdsConfig,
)
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import prometheus as prometheus_models
from grafana_foundation_sdk.models import xychart as xychart_models

SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
Steps = Sequence[tuple[float | None, str]]
POD_BYTES = 256 << 20  # the memory limit of the pods in k8s/base


@dataclass(frozen=True, kw_only=True)
class Text:
    """What a panel says of itself.

    Attributes:
        title: short.
        description: what is shown, and what to do about it.
        unit: Grafana's name of it.
        steps: from which value on which colour is shown; None is minus infinity.
        bad: in the legends of those lines that any number of is bad; they are red.
    """

    title: str
    description: str
    unit: str
    steps: Steps
    bad: str = ""


def choice(name: str, label: str, query: str) -> QueryVariable:
    """Return a variable of which any number of values can be chosen, at first all."""
    return (
        QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query(query)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(models.VariableOption(text="All", value="$__all", selected=True))
    )


def board(title: str, uid: str, description: str) -> Dashboard:
    """Return a dashboard without panels, with a choice of data source and models."""
    return (
        Dashboard(title)
        .uid(uid)
        .description(description)
        .tags(["ttgpt"])
        .readonly()
        .refresh("10s")
        .time("now-30m", "now")
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .with_variable(DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(choice("model", "Model", "label_values(ttgpt_model_info, model_name)"))
    )


def lines(text: Text, width: int, **queries: str) -> timeseries.Panel:
    """Return lines over time; keys of `queries` are legends, in which __ stands for a label: model__model_name."""
    panel = _described(timeseries.Panel(), text, width).legend(
        common.VizLegendOptions()
        .display_mode(common_models.LegendDisplayMode.TABLE)
        .placement(common_models.LegendPlacement.BOTTOM)
        .show_legend(True)
        .calcs(["lastNotNull", "max"])
    )
    panel = panel.fill_opacity(8).line_width(1).show_points(common_models.VisibilityMode.NEVER).min(0)
    panel = panel.thresholds_style(_dashed())
    if text.bad:
        red = models.DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": "red"})
        panel = panel.override_by_regexp(f"/{text.bad}/", [red])
    for index, (legend, expression) in enumerate(queries.items()):
        panel = panel.with_target(_query(index, expression).range().legend_format(_legend(legend)))
    return panel


def number(text: Text, width: int, expression: str, legend: str = "") -> stat.Panel:
    """Return the latest value, one for each of the series, coloured by the thresholds."""
    panel = _described(stat.Panel(), text, width).height(4).graph_mode(common_models.BigValueGraphMode.NONE)
    panel = panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
    panel = panel.color_mode(common_models.BigValueColorMode.VALUE)
    return panel.with_target(_query(0, expression).instant().legend_format(legend or text.title))


def stacked_bars(text: Text, width: int, expression: str, by: str, colours: Mapping[str, str]) -> barchart.Panel:
    """Return one bar per model, stacked by another label, whose values have colours."""
    panel = _described(barchart.Panel(), text, width).orientation(common_models.VizOrientation.HORIZONTAL)
    panel = panel.stacking(common_models.StackingMode.NORMAL).fill_opacity(80).x_field("model_name")
    panel = panel.show_value(common_models.VisibilityMode.NEVER).legend(_list_legend())
    panel = panel.thresholds_style(_dashed())
    for value, colour in colours.items():
        fixed = models.DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": colour})
        panel = panel.override_by_name(value, [fixed])
    pivot = {"columnField": by, "rowField": "model_name", "valueField": "Value", "emptyValue": "zero"}
    panel = panel.with_target(_table_query(0, expression))
    panel = panel.with_transformation(_transform("groupingToMatrix", pivot))
    return panel.with_transformation(
        _transform("renameByRegex", {"regex": r"model_name\\.*", "renamePattern": "model_name"})
    )


def grid(text: Text, width: int, columns: Sequence[tuple[str, str, str]], coloured: str) -> table.Panel:
    """Return a row per model; columns are title, unit and expression; the steps hold for the coloured one."""
    panel = _described(table.Panel(), text, width)
    for name, unit, _ in columns:
        properties = {"unit": unit} | ({"custom.cellOptions": {"type": "color-text"}} if name == coloured else {})
        panel = panel.override_by_name(name, [models.DynamicConfigValue(i, v) for i, v in properties.items()])
    for index, (_, _, expression) in enumerate(columns):
        panel = panel.with_target(_table_query(index, expression))
    for transformation in _joined([name for name, _, _ in columns]):
        panel = panel.with_transformation(transformation)
    return panel


def scatter(text: Text, width: int, x: tuple[str, str, str], y: tuple[str, str, str]) -> xychart.Panel:
    """Return one point per model; an axis is a title, a unit and an expression: bytes, and a share that may be 0."""
    panel = _described(xychart.Panel(), text, width).height(12).legend(_list_legend())
    panel = panel.show(xychart_models.XYShowMode.POINTS)
    panel = panel.point_size(xychart.XychartFieldConfigPointSize().fixed(12))
    panel = panel.color_scheme(FieldColor().mode(models.FieldColorModeId.PALETTE_CLASSIC_BY_NAME))
    for index, (_, _, expression) in enumerate((x, y)):
        panel = panel.with_target(_table_query(index, expression))
    scales = ({"type": "log", "log": 2}, {"type": "symlog", "log": 10, "linearThreshold": 0.001})
    for (name, unit, _), scale in zip((x, y), scales, strict=True):
        properties = {"unit": unit, "custom.axisLabel": name, "custom.scaleDistribution": scale}
        panel = panel.override_by_name(name, [models.DynamicConfigValue(i, v) for i, v in properties.items()])
    for transformation in _joined([x[0], y[0]]):
        panel = panel.with_transformation(transformation)
    split = {"fields": ["model"], "keepFields": False, "naming": {"asLabels": False}}
    panel = panel.with_transformation(_transform("partitionByValues", split))
    series = (
        xychart.XYSeriesConfig()
        .x(xychart.XychartXYSeriesConfigX().matcher(xychart.MatcherConfig().id("byName").options(x[0])))
        .y(xychart.XychartXYSeriesConfigY().matcher(xychart.MatcherConfig().id("byName").options(y[0])))
    )
    return panel.mapping(xychart_models.SeriesMapping.AUTO).series([series])


def _described(panel: Any, text: Text, width: int) -> Any:
    colours = [models.Threshold(value=value, color=colour) for value, colour in text.steps]
    thresholds = ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(colours)
    panel = panel.title(text.title).description(text.description).unit(text.unit).thresholds(thresholds)
    return panel.datasource(SOURCE).span(width).height(8)


def _list_legend() -> common.VizLegendOptions:
    legend = common.VizLegendOptions().display_mode(common_models.LegendDisplayMode.LIST)
    return legend.placement(common_models.LegendPlacement.BOTTOM).show_legend(True).calcs([])


def _dashed() -> common.GraphThresholdsStyleConfig:
    return common.GraphThresholdsStyleConfig().mode(common_models.GraphThresholdsStyleMode.DASHED)


def _query(index: int, expression: str) -> Dataquery:
    return Dataquery().expr(expression).ref_id("ABCDEFGHIJ"[index]).datasource(SOURCE)


def _table_query(index: int, expression: str) -> Dataquery:
    return _query(index, expression).instant().format(prometheus_models.PromQueryFormat.TABLE).legend_format("__auto")


def _legend(key: str) -> str:
    words = key.split("__")
    return " ".join([words[0].replace("_", " "), *(f"{{{{{label}}}}}" for label in words[1:])]).strip()


def _joined(names: Sequence[str]) -> list[models.DataTransformerConfig]:
    """Return what makes one table with a row per model of as many tables as there are names."""
    join = _transform("joinByField", {"byField": "model_name", "mode": "outer"})
    values = ["Value"] if len(names) == 1 else [f"Value #{'ABCDEFGHIJ'[i]}" for i in range(len(names))]
    times = ["Time", *(f"Time {i + 1}" for i in range(len(names)))]
    organize = {
        "excludeByName": dict.fromkeys(times, True),
        "renameByName": {"model_name": "model", **dict(zip(values, names, strict=True))},
    }
    return [join, _transform("organize", organize)]


def _transform(name: str, options: dict[str, Any]) -> models.DataTransformerConfig:
    return models.DataTransformerConfig(id_val=name, options=options)
