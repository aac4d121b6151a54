"""Every overlay and component renders, and is valid for the versions of Kubernetes that it claims."""

from pathlib import Path

import kubernetes_validate
import pytest
from cloudcoil.models.keda.v1alpha1 import ScaledObject
from cloudcoil.models.prometheus_operator.v1 import PrometheusRule, ServiceMonitor
from pydantic import BaseModel

from tests.deploy.manifests import COMPONENTS, K8S, OVERLAYS, Manifest, combined, pods, rendered

CUSTOM: dict[str, type[BaseModel]] = {
    "PrometheusRule": PrometheusRule,
    "ScaledObject": ScaledObject,
    "ServiceMonitor": ServiceMonitor,
}
FIRST = {"image-volume": 33}
LAST = 36


def _validate(manifests: tuple[Manifest, ...], first: int) -> None:
    for manifest in manifests:
        if (kind := CUSTOM.get(manifest["kind"])) is not None:
            # The models leave out what they do not know, so an unknown field does not come back.
            read = kind.model_validate(manifest)
            assert read.model_dump(mode="json", by_alias=True, exclude_unset=True) == manifest
            continue
        for minor in range(first, LAST + 1):
            kubernetes_validate.validate(manifest, f"1.{minor}", strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_is_valid(overlay: str) -> None:
    _validate(rendered(overlay), first=30)


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_component_is_valid(component: str, tmp_path: Path) -> None:
    _validate(combined(tmp_path, component), first=FIRST.get(component, 30))


def test_the_lists_are_complete() -> None:
    assert {f"overlays/{path.name}" for path in (K8S / "overlays").iterdir()} == set(OVERLAYS) - {"base"}
    assert {path.name for path in (K8S / "components").iterdir()} == set(COMPONENTS)


def test_an_unknown_field_is_found() -> None:
    wrong = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": {"prots": []}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.30", strict=True)
    monitor = {"apiVersion": "monitoring.coreos.com/v1", "kind": "ServiceMonitor", "metadata": {"name": "x"}}
    with pytest.raises(AssertionError):
        _validate(({**monitor, "spec": {"selector": {}, "endpoints": [{"prot": "http"}]}},), first=30)


def _everything(folder: Path) -> list[tuple[str, tuple[Manifest, ...]]]:
    found = [(overlay, rendered(overlay)) for overlay in OVERLAYS]
    for component in COMPONENTS:
        (folder / component).mkdir()
        found.append((component, combined(folder / component, component)))
    return found


def test_every_pod_is_restricted_pinned_and_bounded(tmp_path: Path) -> None:
    for where, manifests in _everything(tmp_path):
        for name, template in pods(manifests):
            spec = template["spec"]
            label = f"{where}: {name}"
            assert spec["securityContext"]["runAsNonRoot"] is True, label
            assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, label
            assert (spec["automountServiceAccountToken"], spec["enableServiceLinks"]) == (False, False), label
            for container in [*spec.get("initContainers", []), *spec["containers"]]:
                assert container["securityContext"] == {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                }, label
                assert ":" in container["image"], f"{label}: {container['image']}"
                requests, limits = (container["resources"][kind] for kind in ("requests", "limits"))
                assert requests["memory"] == limits["memory"], label
                mounted = {mount["name"] for mount in container["volumeMounts"]}
                assert mounted <= {volume["name"] for volume in spec["volumes"]}, label


def test_what_a_scanner_finds_is_answered(tmp_path: Path) -> None:
    """Checkov asks for digests, for pulling at every start, for secrets as files, and for users above the host's."""
    for where, manifests in _everything(tmp_path):
        for workload in (m for m in manifests if "template" in m.get("spec", {})):
            label = f"{where}: {workload['metadata']['name']}"
            spec = workload["spec"]["template"]["spec"]
            containers = [*spec.get("initContainers", []), *spec["containers"]]
            open_questions = {
                "CKV_K8S_15": any(c.get("imagePullPolicy") != "Always" for c in containers),
                "CKV_K8S_43": any("@sha256:" not in c["image"] for c in containers),
                "CKV_K8S_35": any("secretRef" in source for c in containers for source in c.get("envFrom", [])),
            }
            answers = [v for k, v in workload["metadata"]["annotations"].items() if k.startswith("checkov.io/skip")]
            answered = {answer.partition("=")[0] for answer in answers if len(answer.partition("=")[2]) > 20}
            assert answered == {check for check, is_open in open_questions.items() if is_open}, label
            assert spec["securityContext"]["runAsUser"] >= 10000, label


def test_everything_is_in_one_namespace(tmp_path: Path) -> None:
    for where, manifests in _everything(tmp_path):
        spaces = {m["metadata"].get("namespace") for m in manifests if m["kind"] != "Namespace"}
        assert spaces == {"ttgpt"}, where
