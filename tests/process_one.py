"""A command as process 1 of a PID namespace of its own, as in a container.

The kernel ignores every signal for it that it has no handler for.
"""

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.tools import debian_program, not_run


@contextmanager
def process_one(command: Sequence[str], environment: Mapping[str, str], **options: Any) -> Iterator["Container"]:
    """Start `command` as process 1, and kill it with all that it has started when the block ends."""
    with subprocess.Popen(
        [*_isolating(), *command], env=dict(environment), stderr=subprocess.PIPE, text=True, **options
    ) as outer:
        try:
            yield Container(outer)
        finally:
            outer.kill()


def handles(pid: int, number: int) -> bool:
    """Return whether a process has a handler for a signal."""
    (mask,) = (line.split()[1] for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "SigCgt" in line)
    return bool(int(mask, 16) >> (number - 1) & 1)


def _isolating() -> list[str]:
    """Return what runs a command in a PID namespace of its own; where nobody may make one, the test is not run."""
    unshare = debian_program("unshare", "util-linux")
    for by_others in ([], ["--user", "--map-root-user"]):
        words = [unshare, *by_others, "--pid", "--fork", "--kill-child"]
        if subprocess.run([*words, "true"], capture_output=True, check=False).returncode == 0:
            return words
    not_run("the right to make a PID namespace")


class Container:
    """The process outside, which has the exit code of process 1, 128 and its number where a signal killed that."""

    def __init__(self, outer: "subprocess.Popen[str]") -> None:
        self.outer = outer

    def pids(self) -> list[int]:
        """Return process 1, as it is numbered outside, and its children; nothing before it runs."""
        (first,) = _children(self.outer.pid) or [0]
        return [first, *_children(first)] if first else []

    def handles(self, number: int) -> bool:
        """Return whether process 1 runs and has a handler for a signal."""
        return any(handles(pid, number) for pid in self.pids()[:1])

    def stop(self, number: int, seconds: float) -> int:
        """Send a signal to process 1; return the exit code.

        Raises:
            TimeoutExpired: if it still runs then.
        """
        os.kill(self.pids()[0], number)
        return self.outer.wait(seconds)


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]
