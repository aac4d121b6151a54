"""How many threads compute.

Threads beyond the quota are worse than none: the kernel stops all of them until the next period begins.
"""

import os
from pathlib import Path

from service.process.cgroup import cpuset_cores, quota_cores


def compute_threads(root: Path = Path("/"), affinity: int | None = None) -> int:
    """Return the cores that this process may keep busy: allowed ones, at most the quota rounded down, at least 1.

    Args:
        root: where /proc and /sys are.
        affinity: cores that the process may run on; the scheduler's answer by default.
    """
    allowed = [len(os.sched_getaffinity(0)) if affinity is None else affinity]
    quota, cpuset = quota_cores(root), cpuset_cores(root)
    if quota is not None:
        allowed.append(int(quota))
    if cpuset is not None:
        allowed.append(cpuset)
    return max(1, min(allowed))
