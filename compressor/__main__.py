"""`python -m compressor` is `ttgpt`: Ctrl-C is one line and exit code 130, from the first moment on."""

import signal
from types import FrameType

from compressor.interrupt import leave
from compressor.threads import wait_briefly


def main() -> None:
    """Run the command line."""
    signal.signal(signal.SIGINT, leave)
    wait_briefly()
    from compressor import cli  # brings torch, whose threads read the environment once

    signal.signal(signal.SIGINT, _interrupt)
    try:
        cli.main()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the exit code is known, and nothing is left to stop


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, once: what a second one would end is the removal of what is unfinished."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
