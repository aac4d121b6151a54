"""One number against another, and bars."""

from math import ceil, floor, log
from typing import Any

from matplotlib.ticker import FuncFormatter, MaxNLocator

from tests.deploy.boards.canvas import SIZE
from tests.deploy.boards.panel import Panel
from tests.deploy.boards.theme import FAINT, colour, of_series

LEFT = 78  # pixels for numbers and the name of the axis
MARKS = 6  # at most, of a logarithmic axis


def xychart(panel: Panel) -> None:
    """Draw a point per row of every table, each table in a colour of its own."""
    (pair,) = panel.json["options"]["series"]
    x, y = (pair[axis]["matcher"]["options"] for axis in "xy")
    found = [table for table in panel.tables() if all(None not in table.columns.get(name, [None]) for name in (x, y))]
    if not found:
        panel.nothing()
        return
    colours = {table.name: of_series(panel.settings(y), table.name, place) for place, table in enumerate(found)}
    axes = panel.canvas.axes(panel.list_legend(colours).inside(left=LEFT, top=6, right=14, bottom=36))
    for name, axis in ((x, axes.xaxis), (y, axes.yaxis)):
        _scale(panel, name, axis)
    for table in found:
        style = {"s": panel.custom["pointSize"]["fixed"] ** 2, "edgecolors": colours[table.name], "linewidths": 1}
        alpha = f"{round(255 * panel.custom['fillOpacity'] / 100):02x}"
        axes.scatter(table.columns[x], table.columns[y], color=colours[table.name] + alpha, clip_on=False, **style)
    axes.margins(0.08)
    for name, axis in ((x, axes.xaxis), (y, axes.yaxis)):
        _widen(panel, name, axis, [value for table in found for value in table.columns[name]])


def _scale(panel: Panel, name: str, axis: Any) -> None:
    settings = panel.settings(name)
    distribution = settings.get("custom.scaleDistribution", {"type": "linear"})
    options = {"base": distribution["log"]} if "log" in distribution else {}
    if "linearThreshold" in distribution:
        options["linthresh"] = distribution["linearThreshold"]
    getattr(axis.axes, f"set_{axis.axis_name}scale")(distribution["type"], **options)
    axis.set_major_formatter(FuncFormatter(lambda value, _: panel.tick(value, name)))
    axis.set_minor_formatter(FuncFormatter(lambda *_: ""))
    axis.set_label_text(settings.get("custom.axisLabel", ""), color=FAINT, fontsize=SIZE)


def _widen(panel: Panel, name: str, axis: Any, values: list[float]) -> None:
    """Let a logarithmic axis begin and end at whole powers."""
    distribution = panel.settings(name).get("custom.scaleDistribution", {"type": "linear"})
    if distribution["type"] == "log":
        base = distribution["log"]
        low, high = floor(log(min(values), base)), ceil(log(max(values), base))
        getattr(axis.axes, f"set_{axis.axis_name}lim")(base**low, base**high)
        axis.set_ticks([base**power for power in range(low, high + 1, ceil((high - low) / MARKS))])


def barchart(panel: Panel) -> None:
    """Draw a bar per row, stacked of the other columns."""
    found = panel.tables()
    if not found:
        panel.nothing()
        return
    (table,) = found
    field = panel.json["options"]["xField"]
    names = table.columns[field]
    parts = {title: values for title, values in table.columns.items() if title != field}
    colours = {title: of_series(panel.settings(title), title, place) for place, title in enumerate(parts)}
    label = max(map(panel.canvas.measured, names)) + 10
    axes = panel.canvas.axes(panel.list_legend(colours).inside(left=label, top=4, right=24, bottom=18))
    ends = [0.0] * len(names)
    style = {"height": 0.7 * panel.json["options"]["barWidth"], "alpha": panel.custom["fillOpacity"] / 100}
    for title, values in parts.items():
        axes.barh(names, values, left=ends, color=colours[title], edgecolor=colours[title], **style)
        ends = [end + value for end, value in zip(ends, values, strict=True)]
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, max(*ends, 1e-9))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: panel.tick(value)))
    _thresholds(panel, axes)


def _thresholds(panel: Panel, axes: Any) -> None:
    if panel.custom.get("thresholdsStyle", {}).get("mode") == "dashed":
        for step in panel.steps:
            if step["value"] is not None and step["value"] <= axes.get_xlim()[1]:
                axes.axvline(step["value"], color=colour(step["color"]), linestyle=(0, (5, 4)), linewidth=1)
