"""One panel: its JSON, its data, and its place."""

import re
from dataclasses import dataclass
from typing import Any

from tests.deploy.boards.canvas import SIZE, Box, Canvas
from tests.deploy.boards.source import Series, Source, series
from tests.deploy.boards.tables import Table, tables
from tests.deploy.boards.theme import FAINT, TEXT
from tests.deploy.boards.units import written

LINE = 14  # of a legend
SHARE = 0.55  # of the room, that a table of series may take
NO_DATA = "No data"


@dataclass(frozen=True)
class Panel:
    """A panel that is being drawn.

    Attributes:
        json: what the dashboard says of it.
        board: the dashboard.
        box: what is left for its content.
    """

    json: dict[str, Any]
    board: dict[str, Any]
    source: Source
    canvas: Canvas
    box: Box

    @property
    def steps(self) -> list[dict[str, Any]]:
        """The thresholds: from which value on which colour holds."""
        steps: list[dict[str, Any]] = self.json["fieldConfig"]["defaults"]["thresholds"]["steps"]
        return steps

    @property
    def custom(self) -> dict[str, Any]:
        """How this type of panel draws its fields."""
        custom: dict[str, Any] = self.json["fieldConfig"]["defaults"].get("custom", {})
        return custom

    def settings(self, name: str) -> dict[str, Any]:
        """Return unit, colour and others of the field or series of this name."""
        config = self.json["fieldConfig"]
        found = dict(config["defaults"])
        for override in config["overrides"]:
            if _matches(override["matcher"], name):
                found |= {change["id"]: change["value"] for change in override["properties"]}
        return found

    def written(self, name: str, value: float | None) -> str:
        """Return a value of a field in its unit."""
        return written(self.settings(name)["unit"], value)

    def tick(self, value: float, name: str = "") -> str:
        """Return a value beside an axis, without zeros at its end."""
        return re.sub(r"\.0+(?!\d)|(\.\d*[1-9])0+(?!\d)", r"\1", self.written(name, value))

    def series(self) -> list[Series]:
        """Return what answers all queries."""
        answers = (series(self.source, self.board, target) for target in self.json["targets"])
        return [one for answer in answers for one in answer if one.values]

    def tables(self) -> list[Table]:
        """Return what answers all queries, as tables."""
        return [table for table in tables(self.source, self.board, self.json) if table.rows]

    def nothing(self) -> None:
        """Say that there is no data."""
        middle = self.box.left + self.box.width / 2, self.box.top + self.box.height / 2
        self.canvas.text(*middle, NO_DATA, color=FAINT, ha="center", fontsize=SIZE + 2)

    def list_legend(self, colours: dict[str, str]) -> Box:
        """Name the series at the bottom, one behind the other; return what is left above."""
        left, lines = self.box.left, 0
        places = {}
        for name in colours:
            wide = self.canvas.measured(name) + 34
            if left + wide > self.box.right and left > self.box.left:
                left, lines = self.box.left, lines + 1
            places[name] = left, lines
            left += wide
        top = self.box.bottom - LINE * (lines + 1)
        for name, (start, line) in places.items():
            self.canvas.mark(start, top + LINE * (line + 0.5), colours[name])
            self.canvas.text(start + 20, top + LINE * (line + 0.5), name, width=self.box.right - start - 20)
        return self.box.inside(bottom=LINE * (lines + 1) + 8)

    def table_legend(self, rows: dict[str, tuple[str, list[str]]], titles: list[str]) -> Box:
        """List colour and figures of every series at the bottom, in some of the room; return what is left above."""
        room = int(self.box.height * SHARE / LINE) - 1
        shown = list(rows.items())[: room if len(rows) <= room else room - 1]
        more = len(rows) - len(shown)
        height = LINE * (len(shown) + 1 + bool(more))
        columns: list[float] = []
        left = self.box.right
        for cells in reversed(list(zip(titles, *(figures for _, figures in rows.values()), strict=True))):
            columns.insert(0, left)
            left -= max(map(self.canvas.measured, cells)) + 12
        middle = self.box.bottom - height + LINE / 2
        self.canvas.text(self.box.left, middle, "Name", color=FAINT)
        for right, title in zip(columns, titles, strict=True):
            self.canvas.text(right, middle, title, color=FAINT, ha="right")
        for name, (colour, figures) in shown:
            middle += LINE
            self.canvas.mark(self.box.left, middle, colour)
            self.canvas.text(self.box.left + 20, middle, name, width=left - self.box.left - 20)
            for right, figure in zip(columns, figures, strict=True):
                self.canvas.text(right, middle, figure, ha="right", color=TEXT)
        if more:
            self.canvas.text(self.box.left + 20, middle + LINE, f"and {more} more, to scroll to", color=FAINT)
        return self.box.inside(bottom=height + 6)


def _matches(matcher: dict[str, Any], name: str) -> bool:
    if matcher["id"] == "byName":
        return bool(matcher["options"] == name)
    if matcher["id"] == "byRegexp":
        return re.search(matcher["options"].strip("/"), name) is not None
    raise ValueError(f"override: {matcher['id']} is neither byName nor byRegexp")
