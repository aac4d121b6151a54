"""`ttgpt`, also as `python -m compressor`: what must hold before the command line is imported, which takes a second.

A signal that stops the process raises SystemExit, so that temporary files are removed and the exit code is 128 and the
signal's number. Process 1 of a container would be deaf without that, because the kernel ignores signals for it that it
does not handle.
"""

import signal
import sys
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> None:
    """Run the command line; where what it needs is not installed, one line on stderr and exit code 2."""
    for number in STOPPING:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, _stop)
    try:
        from compressor.cli import main as run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("compressor", "service"):
            raise
        sys.exit(_only_serves(error.name))
    run()


def _stop(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _only_serves(missing: str | None) -> int:
    print(
        f"error: this installation only serves (python -m service DIR...): ttgpt needs {missing}, which"
        " `pip install 'ttgpt[compressor]'` brings, and so does the image ttgpt-compressor",
        file=sys.stderr,
    )
    return 2


if __name__ == "__main__":
    main()
