"""The pictures of the dashboards show what their JSON says, and nothing of it is left out."""

import copy
import itertools
import re
from collections.abc import Callable
from typing import Any

import pytest
from matplotlib.colors import to_hex
from matplotlib.text import Text

from tests.deploy.boards.board import drawn, words
from tests.deploy.boards.panel import NO_DATA
from tests.deploy.boards.theme import COLOURS
from tests.deploy.boards.units import written
from tests.deploy.queries import DASHBOARDS, panels

Board = dict[str, Any]
Change = Callable[[dict[str, Any]], object]
EACH = pytest.mark.parametrize("name", DASHBOARDS)
MODELS, VALUE = ("first", "second"), 12.5
LABELS = {"component": "wte", "phase": "read", "handler": "/generate", "status": "2xx", "finished_reason": "stop"}
LABELS |= {"tier": "local", "result": "hit", "op": "get", "reason": "invalid", "instance": "127.0.0.1:8000"}


class Answers:
    """Answers everything with a number for each of two models, with the labels that are asked for."""

    span = (1_800_000_000.0, 1_800_000_300.0)

    def ask(self, expression: str, *, latest: bool) -> list[dict[str, Any]]:
        points = [(second, str(VALUE)) for second in self.span]
        value = {"value": points[-1]} if latest else {"values": points}
        by = re.search(r"by \((.*?)\)", expression)
        labels = {name: LABELS[name] for name in by[1].split(", ") if name in LABELS} if by else {}
        return [{"metric": {"model_name": model, **labels}, **value} for model in MODELS]


class Silence(Answers):
    """Answers nothing."""

    def ask(self, expression: str, *, latest: bool) -> list[dict[str, Any]]:
        return []


def _first(kind: str) -> tuple[Board, dict[str, Any]]:
    """Return a copy of a dashboard with a panel of this type, and the first such panel in it, which may be changed."""
    boards = (copy.deepcopy(board) for board in DASHBOARDS.values())
    return next((board, panel) for board in boards for panel in panels(board) if panel["type"] == kind)


def _steps(panel: dict[str, Any], *steps: tuple[float | None, str]) -> None:
    made = [{"value": value, "color": colour} for value, colour in steps]
    panel["fieldConfig"]["defaults"]["thresholds"]["steps"] = made


@EACH
def test_every_panel_is_there_with_data(name: str) -> None:
    shown = words(drawn(DASHBOARDS[name], Answers()))
    assert {panel["title"] for panel in DASHBOARDS[name]["panels"]} <= {text.removeprefix("⌄  ") for text in shown}
    assert NO_DATA not in shown


@EACH
def test_a_panel_without_data_says_so(name: str) -> None:
    assert words(drawn(DASHBOARDS[name], Silence())).count(NO_DATA) == len(panels(DASHBOARDS[name]))


@EACH
def test_texts_are_inside_and_apart(name: str) -> None:
    figure = drawn(DASHBOARDS[name], Answers())
    figure.draw_without_rendering()
    found = [text for text in figure.findobj(Text) if text.get_text().strip(" i") and text.get_visible()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in found]
    overlapping = [(one, other) for (one, a), (other, b) in itertools.combinations(boxes, 2) if a.overlaps(b)]
    assert overlapping == []
    assert [name for name, box in boxes if box.x0 < figure.bbox.x0 or box.x1 > figure.bbox.x1] == []


def test_another_title_another_picture() -> None:
    board, panel = _first("timeseries")
    panel["title"] = "Something else"
    assert "Something else" in words(drawn(board, Answers()))


def test_a_panel_more_or_less() -> None:
    board, panel = _first("table")
    board["panels"].remove(panel)
    assert panel["title"] not in words(drawn(board, Answers()))
    board["panels"].append(panel | {"title": "Once more"})
    assert "Once more" in words(drawn(board, Answers()))


def test_another_query_another_legend() -> None:
    board, panel = _first("timeseries")
    panel["targets"][0]["legendFormat"] = "of {{model_name}}"
    shown = words(drawn(board, Answers()))
    assert {"of first", "of second"} <= set(shown)


@pytest.mark.parametrize(("step", "colour"), [(VALUE, "red"), (VALUE + 1, "green")])
def test_the_threshold_colours_a_number(step: float, colour: str) -> None:
    board, panel = _first("stat")
    board["panels"] = [panel]
    _steps(panel, (None, "green"), (step, "red"))
    numbers = {to_hex(text.get_color()) for text in drawn(board, Answers()).findobj(Text) if text.get_text() == "12.5"}
    assert numbers == {COLOURS[colour].lower()}


def test_the_threshold_is_a_line() -> None:
    board, panel = _first("timeseries")
    board["panels"] = [panel]
    _steps(panel, (None, "green"), (5, "dark-red"))
    (axes,) = drawn(board, Answers()).axes
    lines = [line for line in axes.lines if to_hex(line.get_color()) == COLOURS["dark-red"].lower()]
    assert [set(line.get_ydata()) for line in lines] == [{5}]


def _unit(panel: dict[str, Any]) -> None:
    panel["fieldConfig"]["defaults"]["unit"] = "furlongs"


def _override(panel: dict[str, Any]) -> None:
    change = {"matcher": {"id": "byName", "options": "a"}, "properties": [{"id": "custom.fillBelowTo", "value": "b"}]}
    panel["fieldConfig"]["overrides"].append(change)


CHANGES: dict[str, Change] = {
    "pie": lambda panel: panel.update(type="piechart"),
    "furlongs": _unit,
    "fillBelowTo": _override,
    "options.legend.placement": lambda panel: panel["options"]["legend"].update(placement="right"),
    "options.zoom": lambda panel: panel["options"].update(zoom=True),
    "fieldConfig.defaults.max": lambda panel: panel["fieldConfig"]["defaults"].update(max=9),
    "no variable": lambda panel: panel["targets"][0].update(expr="up{job=~'$job'}"),
}


@pytest.mark.parametrize("named", CHANGES)
def test_what_cannot_be_drawn_is_refused(named: str) -> None:
    board, panel = _first("timeseries")
    CHANGES[named](panel)
    with pytest.raises(ValueError, match=named):
        drawn(board, Answers())


def test_an_unknown_transformation_is_refused() -> None:
    board, panel = _first("table")
    panel["transformations"].append({"id": "sortBy", "options": {}})
    with pytest.raises(ValueError, match="sortBy"):
        drawn(board, Answers())


@pytest.mark.parametrize(
    ("unit", "value", "text"),
    [
        ("short", 0, "0"),
        ("short", 12.5, "12.5"),
        ("short", 6300, "6.30 K"),
        ("reqps", 1.5, "1.50 req/s"),
        ("percentunit", 0.0345, "3.45%"),
        ("percentunit", 1, "100%"),
        ("decbytes", 9.15e6, "9.15 MB"),
        ("decbytes", -16.2e6, "-16.2 MB"),
        ("s", 0.0427, "42.7 ms"),
        ("s", 90, "1.50 mins"),
        ("s", 3e-7, "300 ns"),
        ("s", float("nan"), "-"),
    ],
)
def test_numbers_are_written_as_grafana_does(unit: str, value: float, text: str) -> None:
    assert written(unit, value) == text
