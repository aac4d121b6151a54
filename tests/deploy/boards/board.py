"""A whole dashboard, on Grafana's grid of 24 columns."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from matplotlib.text import Text

from tests.deploy.boards.canvas import SIZE, Box, Canvas
from tests.deploy.boards.known import check
from tests.deploy.boards.lines import timeseries
from tests.deploy.boards.numbers import stat, table
from tests.deploy.boards.panel import Panel
from tests.deploy.boards.points import barchart, xychart
from tests.deploy.boards.source import Source
from tests.deploy.boards.theme import BORDER, FAINT, PANEL

WIDTH, COLUMNS, ROW, GAP, HEAD = 1200, 24, 38, 8, 48
TITLE = 30
TYPES: dict[str, Callable[[Panel], None]] = {
    "timeseries": timeseries,
    "stat": stat,
    "table": table,
    "xychart": xychart,
    "barchart": barchart,
}


def drawn(board: dict[str, Any], source: Source) -> Any:
    """Return the figure of a dashboard.

    Raises:
        ValueError: if it has anything that cannot be drawn, or a query is not valid.
    """
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"])
    canvas = Canvas(WIDTH, HEAD + height * ROW + GAP)
    _head(canvas, board, source)
    for panel in board["panels"]:
        check(panel)
        box = _box(panel["gridPos"])
        if panel["type"] == "row":
            canvas.text(box.left + 4, box.top + box.height / 2, f"⌄  {panel['title']}", fontsize=SIZE + 3)
            continue
        if panel["type"] not in TYPES:
            raise ValueError(f"{panel['title']}: a panel of type {panel['type']} is none of {', '.join(TYPES)}")
        canvas.panel(box, PANEL, BORDER)
        wide = canvas.text(box.left + 10, box.top + 16, panel["title"], width=box.width - 40, fontsize=SIZE + 1.5)
        canvas.hint(box.left + wide + 22, box.top + 16)
        TYPES[panel["type"]](Panel(panel, board, source, canvas, box.inside(10, TITLE, 10, 10)))
    return canvas.figure


def words(figure: Any) -> list[str]:
    """Return every text of a figure."""
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def _box(place: dict[str, int]) -> Box:
    column = (WIDTH - GAP) / COLUMNS
    left, top = GAP + place["x"] * column, HEAD + place["y"] * ROW
    return Box(left, top, place["w"] * column - GAP, place["h"] * ROW - GAP)


def _head(canvas: Canvas, board: dict[str, Any], source: Source) -> None:
    left = GAP + 4 + canvas.text(GAP + 4, HEAD / 2, board["title"], fontsize=SIZE + 6, weight="bold") + 28
    for variable in board["templating"]["list"]:
        left += canvas.text(left, HEAD / 2, variable["label"], color=FAINT) + 6
        chosen = variable["current"]["text"] if "current" in variable else variable["query"]
        left += canvas.text(left, HEAD / 2, chosen) + 20
    begin, end = (datetime.fromtimestamp(second, UTC) for second in source.span)
    words = f"{begin:%Y-%m-%d %H:%M:%S} to {end:%H:%M:%S} UTC"
    canvas.text(WIDTH - GAP - 4, HEAD / 2, words, color=FAINT, ha="right")
