"""Writes the rules of this folder as the operator's PrometheusRule: python docker/prometheus/operator_rules.py OUT."""

import sys
from pathlib import Path

import yaml

HERE = Path(__file__).parent
HEADER = "# Generated from docker/prometheus/rules by `make monitoring`.\n"


def resource() -> str:
    """Return the PrometheusRule as YAML."""
    groups = [
        group for path in sorted(HERE.glob("rules/*.yml")) for group in yaml.safe_load(path.read_text())["groups"]
    ]
    rule = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "ttgpt", "namespace": "ttgpt", "labels": {"app.kubernetes.io/name": "ttgpt"}},
        "spec": {"groups": groups},
    }
    return HEADER + yaml.safe_dump(rule, sort_keys=False, width=120)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(resource())
