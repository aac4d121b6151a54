"""How the threads of one matrix product wait for each other, and that their number decides about no sum."""

import os
from collections.abc import MutableMapping

SPINS = 1000  # some microseconds
BLOCKTIME_MS = 1


def wait_briefly(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let threads that have done their part soon stop to spin for the others; what the operator has set stays.

    The others may need that very core: with the default of milliseconds, two threads on cores shared with other
    processes were seen to take 10 to 200 times longer. Torch's threads read this once, so it comes before its import.
    """
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", str(SPINS))  # GNU's, which torch brings on Linux
        environment.setdefault("KMP_BLOCKTIME", str(BLOCKTIME_MS))  # LLVM's and Intel's


def add_up_alike(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let MKL add up in the same order with any number of threads; what the operator has set stays.

    MKL reads it once, as it is loaded with torch. Products took as long (fp32 and fp64, AVX-512); only LAPACK's
    decompositions still depend on the threads, see `compressor.methods.base.one_thread`.
    """
    environment.setdefault("MKL_CBWR", "AUTO,STRICT")
