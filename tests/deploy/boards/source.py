"""What a Prometheus answers to the queries of a panel."""

import re
from dataclasses import dataclass
from typing import Any, Protocol

import httpx

from tests.deploy.queries import filled

POINTS = 150  # of a line


@dataclass(frozen=True)
class Series:
    """One line, or one number.

    Attributes:
        name: its legend.
        labels: by which it differs from others.
        times: seconds since 1970.
        values: at these times; those that are no number are left out.
    """

    name: str
    labels: dict[str, str]
    times: list[float]
    values: list[float]


class Source(Protocol):
    """Answers queries: with series over time, or each with its latest value.

    Attributes:
        span: from when to when, in seconds since 1970.
    """

    span: tuple[float, float]

    def ask(self, expression: str, *, latest: bool) -> list[dict[str, Any]]:
        """Return series as Prometheus' API has them: `metric`, and `value` or `values`."""
        ...


@dataclass
class Prometheus:
    """A Prometheus, asked about a span of time."""

    client: httpx.Client
    span: tuple[float, float]

    def ask(self, expression: str, *, latest: bool) -> list[dict[str, Any]]:
        begin, end = self.span
        span = {"start": begin, "end": end, "step": (end - begin) / POINTS}
        route, times = ("query", {"time": end}) if latest else ("query_range", span)
        answer = self.client.get(f"/api/v1/{route}", params={"query": expression, **times})
        if answer.status_code != 200:
            raise ValueError(f"query: {expression}: {answer.text}")
        found: list[dict[str, Any]] = answer.json()["data"]["result"]
        return found


def series(source: Source, board: dict[str, Any], target: dict[str, Any]) -> list[Series]:
    """Return what answers one query of a panel, in the order of the legends."""
    answer = source.ask(filled(board, target["expr"]), latest=target["instant"])
    return sorted((_series(one, target["legendFormat"]) for one in answer), key=lambda one: one.name)


def _series(one: dict[str, Any], legend: str) -> Series:
    labels = one["metric"]
    name = re.sub(r"{{(\w+)}}", lambda match: labels.get(match[1], ""), legend).strip()
    points = [(time, float(value)) for time, value in one.get("values", [one.get("value")]) if value != "NaN"]
    return Series(name, labels, [time for time, _ in points], [value for _, value in points])
