"""What the control groups of this process allow it, read from the files of cgroup v2 and v1.

Limits of groups further up hold as well. In a container the group's path may be the host's, which cannot be seen from
inside; then the files at the top of the mounted hierarchy are the container's own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

UNLIMITED_BYTES = 1 << 60  # v1 writes a number like 2^63 where there is no limit


def quota_cores(root: Path = Path("/")) -> float | None:
    """Return how many cores' worth of time this process may use, None if there is no quota."""
    cores = [core for text in _read(root, "", "cpu.max") if (core := _v2_cores(text)) is not None]
    for folder in _folders(root, "cpu"):
        quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
        if quota and period and int(quota) > 0:
            cores.append(int(quota) / int(period))
    return min(cores, default=None)


def cpuset_cores(root: Path = Path("/")) -> int | None:
    """Return how many cores the process may be put on, None if its group does not say."""
    v2 = _read(root, "", "cpuset.cpus.effective")
    v1 = (*_read(root, "cpuset", "cpuset.effective_cpus"), *_read(root, "cpuset", "cpuset.cpus"))
    return min((_count(text) for text in (*v2, *v1) if text), default=None)


def memory_limit_bytes(root: Path = Path("/")) -> int | None:
    """Return how much memory the process may use, None if there is no limit."""
    texts = (*_read(root, "", "memory.max"), *_read(root, "memory", "memory.limit_in_bytes"))
    limits = [int(text) for text in texts if text.isdecimal() and int(text) < UNLIMITED_BYTES]
    return min(limits, default=None)


@dataclass(frozen=True)
class Memory:
    """Memory of one control group in bytes.

    Attributes:
        current: charged to it, with its cached files.
        inactive_file: cached files that the kernel takes back first when memory runs out.
        limit: the most it may have, None if there is no limit.
    """

    current: int
    inactive_file: int
    limit: int | None


@dataclass(frozen=True)
class Throttling:
    """Periods of a control group with a quota of time: how many there were, and in how many it was stopped."""

    periods: int
    throttled: int


def memory(root: Path = Path("/"), process: int | str = "self") -> Memory | None:
    """Return the memory of the group whose limit comes first, else of the process's own; None without groups."""
    found = [*_memories(root, process, "", _V2_MEMORY), *_memories(root, process, "memory", _V1_MEMORY)]
    return min(found, key=lambda group: UNLIMITED_BYTES if group.limit is None else group.limit, default=None)


def throttling(root: Path = Path("/")) -> Throttling | None:
    """Return the periods of the group that was stopped most often, None if no group has a quota."""
    texts = (*_read(root, "", "cpu.stat"), *_read(root, "cpu", "cpu.stat"))
    found = [
        (int(stat["nr_throttled"]), int(stat["nr_periods"])) for text in texts if "nr_periods" in (stat := _stat(text))
    ]
    throttled, periods = max(found, default=(0, 0))
    return Throttling(periods, throttled) if periods else None


_V2_MEMORY = ("memory.current", "memory.max", "inactive_file")
_V1_MEMORY = ("memory.usage_in_bytes", "memory.limit_in_bytes", "total_inactive_file")


def _memories(root: Path, process: int | str, controller: str, names: tuple[str, str, str]) -> Iterator[Memory]:
    used, limit, inactive = names
    for folder in _folders(root, controller, process):
        current, most = _text(folder / used), _text(folder / limit)
        if current is None or not current.isdecimal():
            continue
        bounded = most is not None and most.isdecimal() and int(most) < UNLIMITED_BYTES
        stat = _stat(_text(folder / "memory.stat") or "")
        yield Memory(int(current), int(stat.get(inactive, 0)), int(most) if most and bounded else None)


def _stat(text: str) -> dict[str, str]:
    """Return the values of a file of lines with a name and a number."""
    return {name: value for name, _, value in (line.partition(" ") for line in text.splitlines())}


def _v2_cores(text: str) -> float | None:
    quota, _, period = text.partition(" ")
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() else None


def _count(text: str) -> int:
    """Return how many numbers a list like 0-2,7 names."""
    spans = [part.split("-") for part in text.split(",")]
    return sum(int(span[-1]) - int(span[0]) + 1 for span in spans)


def _read(root: Path, controller: str, name: str) -> list[str]:
    return [text for folder in _folders(root, controller) if (text := _text(folder / name)) is not None]


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _folders(root: Path, controller: str, process: int | str = "self") -> Iterator[Path]:
    """Yield the folder of a process's group and those above it; "" is the one hierarchy of v2."""
    group = _group(root, controller, process)
    if group is None:
        return
    mounted = root / "sys/fs/cgroup"
    tops = [mounted / controller] if controller else [mounted, mounted / "unified"]
    for top in tops:
        inside = top / group
        yield from (folder for folder in (inside, *inside.parents) if folder.is_relative_to(top) and folder.is_dir())


def _group(root: Path, controller: str, process: int | str) -> str | None:
    """Return the path of a process's group in a hierarchy, without the leading slash."""
    for line in (_text(root / f"proc/{process}/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return path.lstrip("/")
    return None
