"""Resident memory and processor time of a process, from /proc."""

import os
import re
from pathlib import Path


def rss_bytes(pid: int | str = "self") -> int:
    """Return what a process holds in memory now, pages of mapped files included."""
    return _kilobytes(pid, "VmRSS") * 1024


def peak_rss_bytes(pid: int | str = "self") -> int:
    """Return the most that a process has held."""
    return _kilobytes(pid, "VmHWM") * 1024


def cpu_seconds(pid: int | str = "self") -> float:
    """Return how long all threads of a process have computed, also in the kernel."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _kilobytes(pid: int | str, field: str) -> int:
    match = re.search(rf"^{field}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    if match is None:
        raise RuntimeError(f"/proc/{pid}/status has no {field}")
    return int(match[1])
