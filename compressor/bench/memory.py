"""Resident memory of a process, from /proc."""

import re
from pathlib import Path


def rss_bytes(pid: int | str = "self") -> int:
    """Return what a process holds in memory now, pages of mapped files included."""
    return _kilobytes(pid, "VmRSS") * 1024


def peak_rss_bytes(pid: int | str = "self") -> int:
    """Return the most that a process has held."""
    return _kilobytes(pid, "VmHWM") * 1024


def _kilobytes(pid: int | str, field: str) -> int:
    match = re.search(rf"^{field}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    if match is None:
        raise RuntimeError(f"/proc/{pid}/status has no {field}")
    return int(match[1])
