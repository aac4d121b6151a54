"""Recording rules and alerts: valid, each alert tested, explained, and the same for the Prometheus operator."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.manifests import K8S, ROOT
from tests.tools import debian_program

RULES = sorted((ROOT / "docker/prometheus/rules").glob("*.yml"))
TESTS = Path(__file__).with_name("alerts.yml")
ALERTS: list[dict[str, Any]] = [
    rule
    for path in RULES
    for group in yaml.safe_load(path.read_text())["groups"]
    for rule in group["rules"]
    if "alert" in rule
]


def _promtool(*arguments: str | Path) -> str:
    run = subprocess.run([debian_program("promtool", "prometheus"), *arguments], capture_output=True, check=False)
    assert run.returncode == 0, (run.stdout + run.stderr).decode()
    return run.stdout.decode()


def test_promtool_finds_nothing_wrong() -> None:
    assert "SUCCESS" in _promtool("check", "rules", *RULES)


def test_every_alert_does_what_its_test_says() -> None:
    _promtool("test", "rules", TESTS)


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: str(rule["alert"]))
def test_every_alert_is_tested_and_explained(rule: dict[str, Any]) -> None:
    assert rule["alert"] in TESTS.read_text()
    assert f"| `{rule['alert']}` |" in (ROOT / "k8s" / "README.md").read_text()
    assert rule["labels"]["severity"] in {"warning", "critical"}
    assert rule["annotations"].keys() == {"summary", "description"}
    assert re.fullmatch(r"\d+m", rule["for"])


def test_the_operators_resource_is_fresh(tmp_path: Path) -> None:
    script = ROOT / "docker/prometheus/operator_rules.py"
    subprocess.run([sys.executable, script, tmp_path / "rule.yaml"], check=True)
    committed = (K8S / "components/monitoring/prometheus-rule.yaml").read_text()
    assert (tmp_path / "rule.yaml").read_text() == committed, "run: make monitoring"
