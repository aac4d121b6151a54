"""Numbers: single ones, and tables of them."""

from math import ceil
from typing import Any

from tests.deploy.boards.canvas import Box
from tests.deploy.boards.panel import Panel
from tests.deploy.boards.source import Series
from tests.deploy.boards.theme import FAINT, GRID, TEXT, of_value

NARROWEST = 110  # of a number among several
ROW = 26  # of a table


def stat(panel: Panel) -> None:
    """Write the latest value of each series in the colour of its threshold, and whose it is where there are several."""
    if panel.json["options"]["reduceOptions"]["calcs"] != ["lastNotNull"]:
        raise ValueError(f"{panel.json['title']}: only the last value can be drawn")
    found = panel.series()
    if not found:
        panel.nothing()
        return
    columns = min(len(found), max(int(panel.box.width // NARROWEST), 1))
    rows = ceil(len(found) / columns)
    width, height = panel.box.width / columns, panel.box.height / rows
    for place, one in enumerate(found):
        left, top = panel.box.left + width * (place % columns), panel.box.top + height * (place // columns)
        _number(panel, one, Box(left, top, width - 6, height), named=len(found) > 1)


def _number(panel: Panel, one: Series, box: Box, *, named: bool) -> None:
    words = panel.written(one.name, one.values[-1])
    size = min(34.0, box.height * (0.45 if named else 0.6))
    size *= min(1.0, box.width / panel.canvas.measured(words, size))
    middle = box.left + box.width / 2
    if named:
        panel.canvas.text(middle, box.top + box.height * 0.22, one.name, ha="center", width=box.width)
    colour, height = of_value(panel.steps, one.values[-1]), box.height * (0.65 if named else 0.48)
    panel.canvas.text(middle, box.top + height, words, ha="center", fontsize=size, color=colour, weight="bold")


def table(panel: Panel) -> None:
    """Write a row of figures per row of the one table that the transformations leave."""
    found = panel.tables()
    if not found:
        panel.nothing()
        return
    (shown,) = found
    lines = int(panel.box.height // ROW) - 1
    columns = {title: _words(panel, title, values[:lines]) for title, values in shown.columns.items()}
    widths = [max(map(panel.canvas.measured, (f"{title}  ", *words))) for title, words in columns.items()]
    spare = max((panel.box.width - sum(widths)) / len(widths), 0)
    left, top = panel.box.left, panel.box.top + ROW / 2
    for (title, words), width in zip(columns.items(), widths, strict=True):
        left += width + spare
        edge, side = (left - 8, "right") if _numeric(shown.columns[title]) else (left - width - spare, "left")
        panel.canvas.text(edge, top, title, weight="bold", color=FAINT, ha=side)
        for line, (word, value) in enumerate(zip(words, shown.columns[title], strict=False), 1):
            panel.canvas.text(edge, top + ROW * line, word, color=_of_cell(panel, title, value), ha=side)
    for line in range(1, min(len(shown.rows), lines) + 1):
        panel.canvas.mark(panel.box.left, panel.box.top + ROW * line, GRID, width=panel.box.width, height=1)


def _numeric(values: list[Any]) -> bool:
    return any(isinstance(value, float) for value in values)


def _words(panel: Panel, title: str, values: list[Any]) -> list[str]:
    return [panel.written(title, value) if _numeric(values) else str(value) for value in values]


def _of_cell(panel: Panel, title: str, value: Any) -> str:
    cell = panel.settings(title).get("custom.cellOptions", {"type": "auto"})["type"]
    if cell not in ("auto", "color-text"):
        raise ValueError(f"{panel.json['title']}: cells of type {cell} cannot be drawn")
    return of_value(panel.steps, value) if cell == "color-text" else TEXT
