"""What the page on deploying says is there."""

import re

from service.settings import Settings
from tests.deploy.manifests import COMPONENTS, OVERLAYS, ROOT, container, one, rendered

PAGE = (ROOT / "k8s" / "README.md").read_text()


def test_every_overlay_and_component_is_named() -> None:
    folders = [overlay for overlay in OVERLAYS if overlay != "base"] + [f"components/{name}" for name in COMPONENTS]
    assert [folder for folder in folders if f"| `{folder}` |" not in PAGE] == []


def test_the_secret_is_the_one_that_the_pods_read() -> None:
    (name, space, variable) = re.findall(r"secret generic (\S+) --namespace (\S+) --from-literal=(\w+)=", PAGE)[0]
    manifests = rendered("overlays/prod")
    (secret,) = (source["secretRef"]["name"] for source in container(manifests)["envFrom"] if "secretRef" in source)
    assert (name, space) == (secret, one(manifests, "Deployment")["metadata"]["namespace"])
    assert variable.removeprefix("TTGPT_").lower() in Settings.model_fields
