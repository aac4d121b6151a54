"""The limits of a pod around one process: memory where this machine lets us limit it, and descriptors."""

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
# Where groups with a memory limit are made, in cgroup v1 and in v2, and the file that limits one.
HIERARCHIES = ((CGROUPS / "memory", "memory.limit_in_bytes"), (CGROUPS, "memory.max"))


@dataclass(frozen=True)
class Pod:
    """Limits for one process.

    Attributes:
        group: the folder of its control group; None where none can be made, which takes root.
        mib: how much memory it may use; None without a group.
    """

    group: Path | None
    mib: int | None

    def hold(self, pid: int) -> None:
        """Put a process that has just begun under these limits."""
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
        if self.group is not None:
            (self.group / "cgroup.procs").write_text(str(pid))


@contextmanager
def pod() -> Iterator[Pod]:
    """Make the limits of a pod for the block; its process has to end with it."""
    group = _new_group()
    try:
        yield Pod(group, MIB if group else None)
    finally:
        if group is not None:
            _remove(group)


def _new_group() -> Path | None:
    for root, limit in HIERARCHIES:
        group = root / f"ttgpt-{os.getpid()}"
        with suppress(OSError):
            group.mkdir()
            if (group / limit).is_file():  # else this hierarchy does not control memory
                (group / limit).write_text(str(MIB << 20))
                return group
            group.rmdir()
    return None


def _remove(group: Path) -> None:
    """Remove an empty group; the kernel may take a moment to see that it is."""
    for _ in range(50):
        with suppress(OSError):
            group.rmdir()
            return
        time.sleep(0.1)
