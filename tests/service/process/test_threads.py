"""Threads and limits from made-up cgroup files."""

from pathlib import Path

import pytest

from service.process.cgroup import memory_limit_bytes
from service.process.threads import compute_threads

V2 = {"proc/self/cgroup": "0::/pod/box\n"}
V1 = {"proc/self/cgroup": "3:cpuset:/box\n2:cpu,cpuacct:/box\n1:memory:/box\n0::/\n"}
TOP = "sys/fs/cgroup"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "threads"),
    [
        ({}, 16),
        ({**V2, f"{TOP}/pod/box/cpu.max": "max 100000\n"}, 16),
        ({**V2, f"{TOP}/pod/box/cpu.max": "200000 100000\n"}, 2),
        ({**V2, f"{TOP}/pod/box/cpu.max": "350000 100000\n"}, 3),
        ({**V2, f"{TOP}/pod/box/cpu.max": "50000 100000\n"}, 1),
        ({**V2, f"{TOP}/pod/box/cpu.max": "max 100000\n", f"{TOP}/pod/cpu.max": "400000 100000\n"}, 4),
        ({**V2, f"{TOP}/cpu.max": "200000 100000\n"}, 2),  # the path is the host's: only the top can be seen
        ({**V2, f"{TOP}/unified/pod/box/cpu.max": "200000 100000\n"}, 2),
        ({**V2, f"{TOP}/pod/box/cpuset.cpus.effective": "0-2,7\n"}, 4),
        ({**V2, f"{TOP}/pod/box/cpuset.cpus.effective": "5\n", f"{TOP}/cpu.max": "300000 100000\n"}, 1),
        ({**V2, f"{TOP}/pod/box/cpuset.cpus.effective": "\n"}, 16),
        ({**V1, f"{TOP}/cpu/box/cpu.cfs_quota_us": "-1\n", f"{TOP}/cpu/box/cpu.cfs_period_us": "100000\n"}, 16),
        ({**V1, f"{TOP}/cpu/box/cpu.cfs_quota_us": "290000\n", f"{TOP}/cpu/box/cpu.cfs_period_us": "100000\n"}, 2),
        ({**V1, f"{TOP}/cpu/cpu.cfs_quota_us": "100000\n", f"{TOP}/cpu/cpu.cfs_period_us": "50000\n"}, 2),
        ({**V1, f"{TOP}/cpuset/box/cpuset.effective_cpus": "0,2-3\n"}, 3),
        ({**V1, f"{TOP}/cpuset/box/cpuset.cpus": "0-1\n"}, 2),
    ],
)
def test_threads_are_what_the_cgroup_allows(tmp_path: Path, files: dict[str, str], threads: int) -> None:
    assert compute_threads(write(tmp_path, files), affinity=16) == threads


def test_affinity_holds_too(tmp_path: Path) -> None:
    files = {**V2, f"{TOP}/pod/box/cpu.max": "800000 100000\n"}
    assert compute_threads(write(tmp_path, files), affinity=2) == 2


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, None),
        ({**V2, f"{TOP}/pod/box/memory.max": "max\n"}, None),
        ({**V2, f"{TOP}/pod/box/memory.max": "1000\n", f"{TOP}/pod/memory.max": "900\n"}, 900),
        ({**V1, f"{TOP}/memory/box/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ({**V1, f"{TOP}/memory/memory.limit_in_bytes": "5000\n"}, 5000),
    ],
)
def test_memory_limit(tmp_path: Path, files: dict[str, str], limit: int | None) -> None:
    assert memory_limit_bytes(write(tmp_path, files)) == limit
