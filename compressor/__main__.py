"""`ttgpt`, also as `python -m compressor`: what must hold before the command line and the libraries are imported.

A signal that stops the process is one line on stderr and the exit code 128 + its number, after what is unfinished was
removed. Process 1 of a container would be deaf without that, because the kernel ignores signals for it that it does
not handle.
"""

import signal
import sys
from types import FrameType

from compressor.process.interrupt import STOPPING, leave
from compressor.process.threads import add_up_alike, wait_briefly


def main() -> None:
    """Run the command line."""
    heard = [number for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]  # as under nohup
    for number in heard:
        signal.signal(number, leave)
    wait_briefly()  # torch and MKL read the environment once
    add_up_alike()
    from compressor import cli

    for number in heard:
        signal.signal(number, _stop)
    try:
        cli.main()
    finally:
        _ignore()  # the exit code is known, and nothing is left to stop


def _stop(number: int, _frame: FrameType | None) -> None:
    """End the run, once: what a second signal would end is the removal of what is unfinished."""
    _ignore()
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    print("interrupted", file=sys.stderr)
    raise SystemExit(128 + number)


def _ignore() -> None:
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    main()
