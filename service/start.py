"""What `ttgpt serve` runs: `python -m service`, which a signal ends in one line while its libraries load."""

import signal
import sys

from compressor.interrupt import leave


def main() -> int:
    """Serve until told to stop; return the exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)
    from service.__main__ import main as serve  # has its own handlers once it listens

    return serve()


if __name__ == "__main__":
    sys.exit(main())
