"""Lines over time."""

from collections.abc import Callable
from datetime import UTC, datetime
from math import ceil
from typing import Any

from matplotlib.ticker import FuncFormatter, MaxNLocator

from tests.deploy.boards.canvas import Box
from tests.deploy.boards.panel import Panel
from tests.deploy.boards.source import Series
from tests.deploy.boards.theme import colour, of_series

CALCULATIONS: dict[str, tuple[str, Callable[[list[float]], float]]] = {
    "lastNotNull": ("Last *", lambda values: values[-1]),
    "max": ("Max", max),
    "mean": ("Mean", lambda values: sum(values) / len(values)),
}
AXIS = 58  # pixels for the numbers on the left
HEADROOM = 1.06
STEPS = (1, 5, 15, 30, 60, 120, 300, 600, 1800, 3600, 21600, 86400)  # seconds between marks of the time
CLEAR = 0.06  # of the width, without marks of the time on either side


def timeseries(panel: Panel) -> None:
    """Draw every series, the thresholds, and a legend with figures."""
    found = panel.series()
    if not found:
        panel.nothing()
        return
    colours = [of_series(panel.settings(one.name), one.name, place) for place, one in enumerate(found)]
    axes = _axes(panel, _legend(panel, found, colours))
    highest = max(max(one.values) for one in found)
    lowest = panel.json["fieldConfig"]["defaults"].get("min", min(min(one.values) for one in found))
    axes.set(xlim=panel.source.span, ylim=(lowest, highest * HEADROOM if highest > lowest else lowest + 1))
    for one, shade in zip(found, colours, strict=True):
        axes.plot(one.times, one.values, color=shade, linewidth=panel.custom.get("lineWidth", 1))
        axes.fill_between(one.times, one.values, lowest, color=shade, alpha=panel.custom["fillOpacity"] / 100, lw=0)
    if panel.custom.get("thresholdsStyle", {}).get("mode") == "dashed":
        for step in panel.steps:
            if step["value"] is not None and step["value"] <= axes.get_ylim()[1]:
                axes.axhline(step["value"], color=colour(step["color"]), linestyle=(0, (5, 4)), linewidth=1, alpha=0.8)


def _legend(panel: Panel, found: list[Series], colours: list[str]) -> Box:
    calculations = [CALCULATIONS[name] for name in panel.json["options"]["legend"]["calcs"]]
    rows = {
        one.name: (shade, [panel.written(one.name, calculate(one.values)) for _, calculate in calculations])
        for one, shade in zip(found, colours, strict=True)
    }
    return panel.table_legend(rows, [title for title, _ in calculations])


def _axes(panel: Panel, box: Box) -> Any:
    axes = panel.canvas.axes(box.inside(left=AXIS, top=4, right=6, bottom=18))
    begin, end = panel.source.span
    step = next(step for step in STEPS if (end - begin) / step <= box.width / 80)
    clear = CLEAR * (end - begin)
    axes.set_xticks([step * place for place in range(ceil((begin + clear) / step), int((end - clear) / step) + 1)])
    clock = "%H:%M" if step >= 60 else "%H:%M:%S"
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: datetime.fromtimestamp(value, UTC).strftime(clock)))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: panel.tick(value)))
    return axes
