"""What a run was measured on, and how quiet it was."""

import os
import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from compressor.process.processor import processor

FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_bf16", "amx_int8")
PACKAGES = ("torch", "numpy", "transformers", "ctranslate2", "openvino", "nncf", "llama-cpp-python", "gguf", "k6")


def describe(threads: int) -> dict[str, Any]:
    """Return the machine: processor, the cores that were used, memory, system."""
    cpu = Path("/proc/cpuinfo").read_text()
    flags = set(_first(r"^flags\s*:\s*(.*)$", cpu).split())
    return {
        "processor": processor(),
        "instructions": [flag for flag in FLAGS if flag in flags],
        "cores_used": threads,
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Return the versions of all that was measured; "absent" where a package is not installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


class Quiet:
    """How much of the processor others used, between its making and `others_share`."""

    def __init__(self) -> None:
        self._busy, self._total = _jiffies()
        self._own = _own_jiffies()

    def others_share(self, contained_seconds: float = 0.0) -> float:
        """Return the share of the time of all cores that neither we nor our ended children used, 0 to 1.

        Args:
            contained_seconds: that our containers have computed, which are nobody's children here.
        """
        busy, total = _jiffies()
        contained = contained_seconds * os.sysconf("SC_CLK_TCK")
        others = (busy - self._busy) - (_own_jiffies() - self._own) - contained
        return max(0.0, others / max(1.0, total - self._total))


def pin(threads: int) -> int:
    """Keep this process and its children on `threads` cores; return how many there are."""
    cores = sorted(os.sched_getaffinity(0))[:threads]
    os.sched_setaffinity(0, cores)
    return len(cores)


def cpu_seconds(pid: int) -> float:
    """Return how long all threads of a process have computed, also in the kernel."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _jiffies() -> tuple[float, float]:
    """Return the busy and the whole time of all cores since the machine started."""
    fields = [float(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return sum(fields) - fields[3] - fields[4], sum(fields)  # without idle and waiting for disks


def _own_jiffies() -> float:
    return sum(os.times()[:4]) * os.sysconf("SC_CLK_TCK")


def _first(pattern: str, text: str) -> str:
    match = re.search(pattern, text, re.MULTILINE)
    return match[1].strip() if match else f"unknown ({sys.platform})"
