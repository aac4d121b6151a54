"""How many threads compute, and that no library adds to them.

Threads beyond the quota are worse than none: the kernel stops all of them until the next period begins.
"""

import os
from collections.abc import MutableMapping
from pathlib import Path

from compressor.process.threads import wait_briefly
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


def keep_libraries_to(threads: int, environment: MutableMapping[str, str] = os.environ) -> None:
    """Keep the pools of libraries that are loaded later to these threads; what the operator has set stays.

    The tokeniser gets no pool of its own, since its work is small and the cores are the decoder's.
    """
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        environment.setdefault(variable, str(threads))
    wait_briefly(environment)
    environment.setdefault("TOKENIZERS_PARALLELISM", "false")
    environment.setdefault("RAYON_NUM_THREADS", "1")
