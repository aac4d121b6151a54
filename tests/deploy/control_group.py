"""Made-up files of /proc and /sys, because a test machine may have neither limit nor quota."""

from pathlib import Path

GROUP = "sys/fs/cgroup/pod"


def write_group(root: Path, number: int) -> None:
    """Write a control group with a memory limit and a CPU quota; the higher the number, the more periods there were."""
    files = {
        "proc/self/cgroup": "0::/pod\n",
        "proc/self/statm": "90000 80000 0 0 0 0 0\n",
        f"{GROUP}/memory.current": "400000000\n",
        f"{GROUP}/memory.max": "800000000\n",
        f"{GROUP}/memory.stat": "inactive_file 1000\n",
        f"{GROUP}/cpu.stat": f"nr_periods {100 * number + 100}\nnr_throttled {10 * number}\n",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        partial = (root / name).with_suffix(".partial")
        partial.write_text(text)
        partial.replace(root / name)
