"""Which processor this is."""

import platform
import re
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def processor() -> str:
    """Return the processor's name as the system tells it."""
    found = re.search(r"^model name\s*:\s*(.*)$", CPUINFO.read_text(), re.MULTILINE) if CPUINFO.is_file() else None
    return found[1].strip() if found else platform.processor() or platform.machine()
