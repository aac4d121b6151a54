"""What the README says of deploying is there."""

import re

from tests.deploy.manifests import COMPONENTS, OVERLAYS, ROOT

README = (ROOT / "README.md").read_text()
DEPLOY, WATCH = (README.partition(f"## {title}\n")[2].partition("\n## ")[0] for title in ("Deploy", "Watch"))


def test_every_file_it_names_exists() -> None:
    named = re.findall(r"\b(?:docker|k8s)/[\w./-]*\w", DEPLOY)
    assert len(named) >= 4
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_file_of_watching_exists() -> None:
    named = re.findall(r"\b(?:docker)/[\w./-]*\w", WATCH)
    assert len(named) >= 3
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_overlay_and_component_is_named() -> None:
    folders = [overlay for overlay in OVERLAYS if overlay != "base"] + [f"components/{name}" for name in COMPONENTS]
    assert [folder for folder in folders if f"| `{folder}` |" not in DEPLOY] == []
