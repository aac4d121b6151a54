"""The dashboards: fresh, explained, and asking for what exists."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.manifests import ROOT, container, rendered
from tests.deploy.queries import DASHBOARDS, RECORDED, panels, recorded, shown

PANELS = [(name, panel) for name, board in DASHBOARDS.items() for panel in panels(board)]


def test_they_are_fresh(tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / "docker/grafana/dashboards.py", tmp_path], check=True)
    committed = {path.name: path.read_text() for path in (ROOT / "docker/grafana/dashboards").glob("*.json")}
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == committed, "run: make monitoring"


def test_kustomize_takes_all_of_them() -> None:
    folder = ROOT / "docker/grafana/dashboards"
    (generator,) = yaml.safe_load((folder / "kustomization.yaml").read_text())["configMapGenerator"]
    assert sorted(generator["files"]) == sorted(path.name for path in folder.glob("*.json"))


@pytest.mark.parametrize("name", DASHBOARDS)
def test_one_chooses_the_model_and_the_source(name: str) -> None:
    variables = {variable["name"]: variable for variable in DASHBOARDS[name]["templating"]["list"]}
    assert variables["datasource"]["query"] == "prometheus"
    assert (variables["model"]["multi"], variables["model"]["includeAll"]) == (True, True)
    assert DASHBOARDS[name]["editable"] is False


@pytest.mark.parametrize(("name", "panel"), PANELS, ids=lambda value: value["title"] if isinstance(value, dict) else "")
def test_every_panel_explains_itself(name: str, panel: dict[str, Any]) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    assert len(panel["description"]) > 10
    assert defaults["unit"]
    first, *others = [step["value"] for step in defaults["thresholds"]["steps"]]
    assert first is None
    assert others
    assert others == sorted(others)
    assert panel.get("options", {}).get("legend", {"showLegend": True})["showLegend"] is True
    assert panel["datasource"]["uid"] == "${datasource}"
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    for target in panel["targets"]:
        assert target["legendFormat"], f"{name}: {panel['title']}"


def test_no_two_panels_of_a_dashboard_have_one_title_and_place() -> None:
    for board in DASHBOARDS.values():
        places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in panels(board)]
        assert len(set(places)) == len(places)
        assert all(p["gridPos"]["x"] + p["gridPos"]["w"] <= 24 for p in panels(board))


def test_what_rules_record_is_what_dashboards_ask_for() -> None:
    assert {name for expression in shown() for name in recorded(expression)} <= RECORDED


def test_the_memory_limit_that_is_drawn_is_the_pods() -> None:
    memory = container(rendered("base"))["resources"]["limits"]["memory"]
    steps = {panel["title"]: panel["fieldConfig"]["defaults"]["thresholds"]["steps"] for _, panel in PANELS}
    assert steps["Memory against weights"][1]["value"] == int(memory.removesuffix("Mi")) << 20
