"""Answers as tables, and the transformations of them that the dashboards ask for."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tests.deploy.boards.source import Source, series


@dataclass(frozen=True)
class Table:
    """Columns by title, all of one length, and a name if it is one of several."""

    columns: dict[str, list[Any]]
    name: str = ""

    @property
    def rows(self) -> list[tuple[Any, ...]]:
        """All rows."""
        return list(zip(*self.columns.values(), strict=True))


def tables(source: Source, board: dict[str, Any], panel: dict[str, Any]) -> list[Table]:
    """Return what answers all queries of a panel, transformed as it says.

    Raises:
        ValueError: if a transformation is not known here.
    """
    several = len(panel["targets"]) > 1
    found = []
    for target in panel["targets"]:
        answer = [one for one in series(source, board, target) if one.values]
        labels = list(dict.fromkeys(label for one in answer for label in one.labels))
        columns: dict[str, list[Any]] = {"Time": [one.times[-1] for one in answer]}
        columns |= {label: [one.labels.get(label, "") for one in answer] for label in labels}
        columns[f"Value #{target['refId']}" if several else "Value"] = [one.values[-1] for one in answer]
        found.append(Table(columns))
    for step in panel.get("transformations", []):
        if step["id"] not in TRANSFORMATIONS:
            raise ValueError(
                f"transformation: {step['id']} of {panel['title']} is none of {', '.join(TRANSFORMATIONS)}"
            )
        found = TRANSFORMATIONS[step["id"]](found, **step["options"])
    return found


def _join(found: list[Table], *, byField: str, mode: str) -> list[Table]:  # noqa: N803
    """Return one table with a row for every value of a column that any has; titles that occur twice are numbered."""
    if mode != "outer":
        raise ValueError(f"joinByField: mode {mode} is not outer")
    found = [table for table in found if byField in table.columns]
    keys = list(dict.fromkeys(key for table in found for key in table.columns[byField]))
    often = Counter(title for table in found for title in table.columns)
    columns: dict[str, list[Any]] = {byField: keys}
    for number, table in enumerate(found, 1):
        places = {key: place for place, key in enumerate(table.columns[byField])}
        for title, values in table.columns.items():
            if title != byField:
                numbered = f"{title} {number}" if often[title] > 1 else title
                columns[numbered] = [values[places[key]] if key in places else None for key in keys]
    return [Table(columns)]


def _organize(found: list[Table], *, excludeByName: dict[str, bool], renameByName: dict[str, str]) -> list[Table]:  # noqa: N803
    def organized(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
        kept = {title: values for title, values in columns.items() if not excludeByName.get(title)}
        return {renameByName.get(title, title): values for title, values in kept.items()}

    return [replace(table, columns=organized(table.columns)) for table in found]


def _partition(found: list[Table], *, fields: list[str], keepFields: bool, naming: dict[str, bool]) -> list[Table]:  # noqa: N803
    """Return a table for every value of a column, with its name."""
    if keepFields or naming != {"asLabels": False}:
        raise ValueError("partitionByValues: only without the fields, and with their values as names")
    (field,) = fields
    parts = []
    for table in found:
        for key in dict.fromkeys(table.columns.get(field, [])):
            at = [place for place, value in enumerate(table.columns[field]) if value == key]
            others = {title: values for title, values in table.columns.items() if title != field}
            parts.append(Table({title: [values[i] for i in at] for title, values in others.items()}, str(key)))
    return parts


def _matrix(
    found: list[Table],
    *,
    columnField: str,  # noqa: N803
    rowField: str,  # noqa: N803
    valueField: str,  # noqa: N803
    emptyValue: str,  # noqa: N803
) -> list[Table]:
    """Return a row for every value of one column, and a column for every value of another."""
    if emptyValue != "zero":
        raise ValueError(f"groupingToMatrix: emptyValue {emptyValue} is not zero")
    made = []
    for table in (table for table in found if rowField in table.columns):
        chosen = (table.columns[title] for title in (rowField, columnField, valueField))
        values = {(row, column): value for row, column, value in zip(*chosen, strict=True)}
        rows = list(dict.fromkeys(row for row, _ in values))
        columns: dict[str, list[Any]] = {f"{rowField}\\{columnField}": rows}
        for column in dict.fromkeys(column for _, column in values):
            columns[column] = [values.get((row, column), 0.0) for row in rows]
        made.append(Table(columns))
    return made


def _rename(found: list[Table], *, regex: str, renamePattern: str) -> list[Table]:  # noqa: N803
    def renamed(title: str) -> str:
        return re.sub(regex, renamePattern, title)

    return [replace(table, columns={renamed(title): v for title, v in table.columns.items()}) for table in found]


TRANSFORMATIONS: dict[str, Callable[..., list[Table]]] = {
    "joinByField": _join,
    "organize": _organize,
    "partitionByValues": _partition,
    "groupingToMatrix": _matrix,
    "renameByRegex": _rename,
}
