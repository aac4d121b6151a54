"""What the operating system says of this process, read whenever the metrics are scraped."""

import os
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service.process import cgroup


class ProcessCollector(Collector):
    """Memory, and how often the control group's quota has stopped us. What the system does not say is left out.

    Args:
        root: where /proc and /sys are.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def collect(self) -> Iterator[Metric]:
        """Yield what there is."""
        yield GaugeMetricFamily("ttgpt_memory_rss_bytes", "Resident memory of the process.", self._rss_bytes())
        yield from self._memory()
        yield from self._throttling()

    def _rss_bytes(self) -> int:
        pages = (self._root / "proc/self/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def _memory(self) -> Iterator[Metric]:
        memory = cgroup.memory(self._root)
        if memory is None:
            return
        current = "Memory charged to the control group, with cached files."
        yield GaugeMetricFamily("ttgpt_cgroup_memory_current_bytes", current, memory.current)
        inactive = "Cached files of the control group that the kernel takes back before it kills."
        yield GaugeMetricFamily("ttgpt_cgroup_memory_inactive_file_bytes", inactive, memory.inactive_file)
        if memory.limit is not None:
            limit = "The most that the control group may have."
            yield GaugeMetricFamily("ttgpt_cgroup_memory_limit_bytes", limit, memory.limit)

    def _throttling(self) -> Iterator[Metric]:
        cpu = cgroup.throttling(self._root)
        if cpu is None:
            return
        periods = "Periods of the control group's CPU quota in which it ran."
        yield CounterMetricFamily("ttgpt_cgroup_cpu_periods", periods, cpu.periods)
        throttled = "Periods in which the quota was used up and every thread was stopped."
        yield CounterMetricFamily("ttgpt_cgroup_cpu_throttled_periods", throttled, cpu.throttled)
