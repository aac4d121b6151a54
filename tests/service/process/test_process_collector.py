"""Memory and throttling, from made-up files of /proc and /sys."""

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from service.process.collector import ProcessCollector
from tests.service.process.test_threads import TOP, V1, V2, write

STATM = {"proc/self/statm": "1000 250 100 1 0 500 0\n"}
STAT = "nr_periods {}\nnr_throttled {}\nthrottled_usec 5\n"


def scraped(root: Path) -> dict[str, float]:
    """Return every sample by its name without the prefix."""
    registry = CollectorRegistry()
    registry.register(ProcessCollector(root))
    return {s.name.removeprefix("ttgpt_"): s.value for metric in registry.collect() for s in metric.samples}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, {}),
        (
            {
                **V2,
                f"{TOP}/pod/box/memory.current": "300\n",
                f"{TOP}/pod/box/memory.max": "max\n",
                f"{TOP}/pod/box/memory.stat": "anon 1\ninactive_file 40\n",
                f"{TOP}/pod/box/cpu.stat": STAT.format(0, 0),
            },
            {"current_bytes": 300, "inactive_file_bytes": 40},
        ),
        (  # the limit of a group further up comes first, with what that group has
            {
                **V2,
                f"{TOP}/pod/box/memory.current": "300\n",
                f"{TOP}/pod/box/memory.max": "900\n",
                f"{TOP}/pod/memory.current": "700\n",
                f"{TOP}/pod/memory.max": "800\n",
            },
            {"current_bytes": 700, "inactive_file_bytes": 0, "limit_bytes": 800},
        ),
        (
            {
                **V1,
                f"{TOP}/memory/box/memory.usage_in_bytes": "300\n",
                f"{TOP}/memory/box/memory.limit_in_bytes": "900\n",
                f"{TOP}/memory/box/memory.stat": "inactive_file 1\ntotal_inactive_file 50\n",
            },
            {"current_bytes": 300, "inactive_file_bytes": 50, "limit_bytes": 900},
        ),
        (
            {
                **V1,
                f"{TOP}/memory/box/memory.usage_in_bytes": "3\n",
                f"{TOP}/memory/box/memory.limit_in_bytes": f"{2**63}",
            },
            {"current_bytes": 3, "inactive_file_bytes": 0},
        ),
    ],
)
def test_memory_of_the_control_group(tmp_path: Path, files: dict[str, str], expected: dict[str, int]) -> None:
    found = scraped(write(tmp_path, {**STATM, **files}))
    assert {name.removeprefix("cgroup_memory_"): v for name, v in found.items() if "cgroup" in name} == expected
    assert found["memory_rss_bytes"] == 250 * 4096


@pytest.mark.parametrize("hierarchy", [V1, V2])
def test_throttled_periods(tmp_path: Path, hierarchy: dict[str, str]) -> None:
    top = f"{TOP}/cpu" if hierarchy is V1 else f"{TOP}/pod"
    files = {f"{top}/box/cpu.stat": STAT.format(100, 3), f"{top}/cpu.stat": STAT.format(90, 30)}
    found = scraped(write(tmp_path, {**STATM, **hierarchy, **files}))
    assert (found["cgroup_cpu_throttled_periods_total"], found["cgroup_cpu_periods_total"]) == (30, 90)


def test_every_scrape_reads_again(tmp_path: Path) -> None:
    write(tmp_path, STATM)
    assert scraped(tmp_path)["memory_rss_bytes"] == 250 * 4096
    write(tmp_path, {"proc/self/statm": "1000 251 100 1 0 500 0\n"})
    assert scraped(tmp_path)["memory_rss_bytes"] == 251 * 4096
