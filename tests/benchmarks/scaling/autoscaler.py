"""The HorizontalPodAutoscaler's algorithm, and what the manifests say to it.

https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/#algorithm-details
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Any

SYNC_SECONDS = 15.0  # --horizontal-pod-autoscaler-sync-period
TOLERANCE = 0.1  # --horizontal-pod-autoscaler-tolerance
DOUBLE = {"type": "Percent", "value": 100, "periodSeconds": 15}
DEFAULTS: dict[str, dict[str, Any]] = {
    "scaleUp": {
        "stabilizationWindowSeconds": 0,
        "policies": [DOUBLE, {"type": "Pods", "value": 4, "periodSeconds": 15}],
    },
    "scaleDown": {"stabilizationWindowSeconds": 300, "policies": [DOUBLE]},
}


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What is looked at.

    Attributes:
        name: cpu, waiting or in_flight.
        target: of its mean over replicas: a share of the cores, or requests.
    """

    name: str
    target: float

    def wanted(self, current: int, total: float, ready: int) -> int:
        """Return how many replicas would have the target.

        Args:
            current: replicas, those that are not ready included.
            total: sum over those that are ready.
            ready: how many those are.
        """
        if self.name != "cpu":
            ratio = total / (self.target * current)
            return current if abs(ratio - 1) <= TOLERANCE else ceil(total / self.target)
        if not ready:
            return current
        ratio = total / (self.target * ready)
        if ratio > 1:  # those that are not ready are taken to be idle
            ratio = max(1.0, total / (self.target * current))
            ready = current
        return current if abs(ratio - 1) <= TOLERANCE else ceil(ratio * ready)


@dataclass
class Autoscaler:
    """One autoscaler, which remembers what it recommended and did.

    Attributes:
        metrics: the highest of what they want counts.
        least, most: replicas.
        behavior: `spec.behavior` of the manifest; what it leaves out is as in Kubernetes.
    """

    metrics: tuple[Metric, ...]
    least: int
    most: int
    behavior: Mapping[str, Any] = field(default_factory=dict)
    _wanted: list[tuple[float, int]] = field(default_factory=list)
    _counts: list[tuple[float, int]] = field(default_factory=list)

    def replicas(self, now: float, current: int, totals: Mapping[str, float], ready: int) -> int:
        """Return how many replicas there should be from now on.

        Args:
            now: in seconds, later than before.
            current: replicas, those that are not ready included.
            totals: of every metric, summed over replicas.
            ready: replicas that are.
        """
        wanted = max(metric.wanted(current, totals[metric.name], ready) for metric in self.metrics)
        self._wanted.append((now, min(max(wanted, self.least), self.most)))
        self._counts.append((now, current))
        up, down = self._rules("scaleUp"), self._rules("scaleDown")
        lowest = min(self._recent(now, up["stabilizationWindowSeconds"]))
        highest = max(self._recent(now, down["stabilizationWindowSeconds"]))
        stable = min(max(current, lowest), highest)
        if stable > current:
            stable = min(stable, max(self._allowed(now, current, policy, 1) for policy in up["policies"]))
        elif stable < current:
            stable = max(stable, min(self._allowed(now, current, policy, -1) for policy in down["policies"]))
        return min(max(stable, self.least), self.most)

    def _rules(self, way: str) -> dict[str, Any]:
        return {**DEFAULTS[way], **self.behavior.get(way, {})}

    def _recent(self, now: float, seconds: float) -> list[int]:
        return [wanted for time, wanted in self._wanted if time >= now - seconds]

    def _allowed(self, now: float, current: int, policy: Mapping[str, Any], sign: int) -> int:
        """Return the count that a policy allows, by what there was at the beginning of its period."""
        period = [count for time, count in self._counts if time > now - policy["periodSeconds"]]
        start = period[0] if period else current
        value = int(policy["value"])
        change = value if policy["type"] == "Pods" else ceil(start * value / 100)
        return start + sign * change
