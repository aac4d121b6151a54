"""What the manifests in k8s/ say to an autoscaler."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.benchmarks.scaling.autoscaler import Metric

K8S = Path(__file__).parents[3] / "k8s"
AUTOSCALER = K8S / "base/autoscaler.yaml"
SCALED_OBJECT = K8S / "components/queue-autoscaling/scaled-object.yaml"
MONITOR = K8S / "components/monitoring/service-monitor.yaml"


@dataclass(frozen=True, kw_only=True)
class Configured:
    """What is configured.

    Attributes:
        least, most: replicas.
        behavior: of the autoscaler.
        cpu: what the autoscaler of the base looks at.
        component: what that of the component queue-autoscaling looks at.
        scrape_seconds: between two samples of the metrics.
    """

    least: int
    most: int
    behavior: dict[str, Any]
    cpu: Metric
    component: tuple[Metric, ...]
    scrape_seconds: float


def configured() -> Configured:
    """Return what the manifests say today."""
    (base,) = _read(AUTOSCALER)["spec"]["metrics"]
    scaler = _read(SCALED_OBJECT)["spec"]
    (endpoint,) = _read(MONITOR)["spec"]["endpoints"]
    return Configured(
        least=scaler["minReplicaCount"],
        most=scaler["maxReplicaCount"],
        behavior=scaler["advanced"]["horizontalPodAutoscalerConfig"]["behavior"],
        cpu=Metric(name="cpu", target=base["resource"]["target"]["averageUtilization"] / 100),
        component=tuple(map(_metric, scaler["triggers"])),
        scrape_seconds=float(endpoint["interval"].removesuffix("s")),
    )


def _metric(trigger: dict[str, Any]) -> Metric:
    about = trigger["metadata"]
    if trigger["type"] == "cpu":
        return Metric(name="cpu", target=float(about["value"]) / 100)
    asked = set(re.findall(r"ttgpt_num_requests_(\w+)", about["query"]))
    names = {frozenset({"waiting"}): "waiting", frozenset({"waiting", "running"}): "in_flight"}
    return Metric(name=names[frozenset(asked)], target=float(about["threshold"]))


def _read(path: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = yaml.safe_load(path.read_text())
    return manifest
