"""Signals while there is nothing that could be cleaned up: libraries load, or a process is being started."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def leave(number: int, _frame: FrameType | None) -> None:
    """End the process with one line on stderr and the exit code that shells give for a signal.

    Imports do not survive a KeyboardInterrupt.
    """
    os.write(2, b"interrupted\n")
    os._exit(128 + number)


@contextmanager
def held() -> Iterator[None]:
    """Let signals that would stop this process do so behind the block only.

    Otherwise a process that is started in it may be there already, and its id not yet known.
    """
    if threading.current_thread() is not threading.main_thread():  # where no signal is handled
        yield
        return
    came: list[int] = []
    numbers = [n for n in STOPPING if callable(signal.getsignal(n))]
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for first in came[:1]:
            signal.raise_signal(first)
