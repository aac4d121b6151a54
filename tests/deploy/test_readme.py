"""What the README says of deploying is there."""

import re

from service.settings import Settings
from tests.deploy.manifests import COMPONENTS, OVERLAYS, ROOT, container, one, rendered

README = (ROOT / "README.md").read_text()
DEPLOY, OPERATE = (README.partition(f"## {title}\n")[2].partition("\n## ")[0] for title in ("Deploy", "Operate"))


def test_every_file_it_names_exists() -> None:
    named = re.findall(r"\b(?:docker|k8s)/[\w./-]*\w", DEPLOY)
    assert len(named) >= 4
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_file_of_operating_exists() -> None:
    named = re.findall(r"\b(?:docker|compressor)/[\w./-]*\w", OPERATE)
    assert len(named) >= 3
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_overlay_and_component_is_named() -> None:
    folders = [overlay for overlay in OVERLAYS if overlay != "base"] + [f"components/{name}" for name in COMPONENTS]
    assert [folder for folder in folders if f"| `{folder}` |" not in DEPLOY] == []


def test_the_secret_is_the_one_that_the_pods_read() -> None:
    (name, space, variable) = re.findall(r"secret generic (\S+) --namespace (\S+) --from-literal=(\w+)=", DEPLOY)[0]
    manifests = rendered("overlays/prod")
    (secret,) = (source["secretRef"]["name"] for source in container(manifests)["envFrom"] if "secretRef" in source)
    assert (name, space) == (secret, one(manifests, "Deployment")["metadata"]["namespace"])
    assert variable.removeprefix("TTGPT_").lower() in Settings.model_fields
