"""`python -m service DIR... --host --port`: serve artefacts until SIGTERM.

Exit code 0 after a clean stop, 2 with one line on stderr if an argument, a setting or an artefact is wrong. A signal
that comes while the libraries load ends it at once; process 1 of a container would be deaf till then.
"""

import os
import signal
import sys

from compressor.process.interrupt import leave


def main() -> int:
    """Serve until told to stop; return the exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)
    for variable in ("OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"):  # numpy's and the tokenizer's: cores are the model's
        os.environ.setdefault(variable, "1")
    from service.server import main as serve  # has its own handlers once it listens

    return serve()


if __name__ == "__main__":
    sys.exit(main())
