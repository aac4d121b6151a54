"""The limits of a pod around one process: memory and cores where this machine lets us limit them, and descriptors."""

import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

MIB = 256  # what k8s/base gives a replica of gpt2-mini
DESCRIPTORS = 1024
CGROUPS = Path("/sys/fs/cgroup")
PERIOD_US = 100_000
# Where groups with a memory limit are made, in cgroup v1 and in v2, and the file that limits one; the same of time.
MEMORY = ((CGROUPS / "memory", "memory.limit_in_bytes"), (CGROUPS, "memory.max"))
TIME = ((CGROUPS / "cpu", "cpu.cfs_quota_us"), (CGROUPS, "cpu.max"))


@dataclass(frozen=True)
class Pod:
    """Limits for one process.

    Attributes:
        groups: the folders of its control groups; none where none can be made, which takes root.
        mib: how much memory it may use; None without a group.
    """

    groups: tuple[Path, ...]
    mib: int | None

    def hold(self, pid: int) -> None:
        """Put a process that has just begun under these limits."""
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
        for group in self.groups:
            (group / "cgroup.procs").write_text(str(pid))


@contextmanager
def pod(mib: int = MIB, cores: float | None = None) -> Iterator[Pod]:
    """Make the limits of a pod for the block; its process has to end with it."""
    memory = _new_group(MEMORY, str(mib << 20))
    time_us = None if cores is None else _new_group(TIME, str(int(cores * PERIOD_US)))
    groups = tuple(dict.fromkeys(group for group in (memory, time_us) if group is not None))
    try:
        yield Pod(groups, mib if memory else None)
    finally:
        for group in groups:
            _remove(group)


def _new_group(hierarchies: tuple[tuple[Path, str], ...], value: str) -> Path | None:
    for root, limit in hierarchies:
        group = root / f"ttgpt-{os.getpid()}"
        known = group.is_dir()  # in v2 memory and cores are limited in one group
        with suppress(OSError):
            group.mkdir(exist_ok=True)
            if (group / limit).is_file():  # else this hierarchy does not control it
                (group / limit).write_text(value)
                return group
            if not known:
                group.rmdir()
    return None


def _remove(group: Path) -> None:
    """Remove an empty group; the kernel may take a moment to see that it is."""
    for _ in range(50):
        with suppress(OSError):
            group.rmdir()
            return
        time.sleep(0.1)
