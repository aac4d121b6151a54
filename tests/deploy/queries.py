"""Every PromQL expression of rules and dashboards, and the metrics that it names."""

import json
import re
from typing import Any

import yaml

from tests.deploy.manifests import ROOT

DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in (ROOT / "docker/grafana/dashboards").glob("*.json")}
RULES: list[dict[str, Any]] = [
    rule
    for path in sorted((ROOT / "docker/prometheus/rules").glob("*.yml"))
    for group in yaml.safe_load(path.read_text())["groups"]
    for rule in group["rules"]
]
RECORDED = {rule["record"] for rule in RULES if "record" in rule}
RATE_INTERVAL = "15s"  # what Grafana would put in: a few scrapes


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the panels without the rows that head them."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def shown() -> list[str]:
    """Return the expressions of all panels, with the variables put in."""
    return sorted(
        {
            filled(board, target["expr"])
            for board in DASHBOARDS.values()
            for panel in panels(board)
            for target in panel["targets"]
        }
    )


def filled(board: dict[str, Any], expression: str) -> str:
    """Return an expression of a dashboard with what stands for all values of its variables put in.

    Raises:
        ValueError: if it has a variable that the dashboard lacks.
    """
    every = {variable["name"]: variable.get("allValue", "") for variable in board["templating"]["list"]}
    for name, value in (every | {"__rate_interval": RATE_INTERVAL}).items():
        expression = expression.replace(f"${name}", value)
    if "$" in expression:
        raise ValueError(f"query: there is no variable for {expression}")
    return expression


def raw_metrics(expression: str) -> set[str]:
    """Return the names of the service's own series in an expression."""
    return set(re.findall(r"(?<![\w:])ttgpt_\w+", expression))


def recorded(expression: str) -> set[str]:
    """Return the names of recorded series in an expression."""
    return set(re.findall(r"\w+:ttgpt_\w+:\w+", expression))
