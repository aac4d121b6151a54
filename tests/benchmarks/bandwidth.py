"""Read bandwidth of the memory: `python -m tests.benchmarks.bandwidth`, one line of JSON on stdout.

C's memchr looks for a byte that is not there: it only reads, with the widest vectors that the library has, and
`ctypes` lets go of the interpreter's lock meanwhile, so that threads run side by side. On the machines tried it beats
sums and products of numpy and torch, so the bound it gives is the stricter one.
"""

import argparse
import ctypes
import json
import mmap
import threading
import time

PASSES = 5
BLOCK = 1 << 20


def read_gb_per_s(num_bytes: int, threads: int) -> float:
    """Return the best of several passes over a buffer, in 10^9 bytes per second."""
    memchr = ctypes.CDLL(None).memchr
    memchr.argtypes, memchr.restype = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t], ctypes.c_void_p
    with mmap.mmap(-1, num_bytes) as buffer:
        for start in range(0, num_bytes, BLOCK):
            buffer[start : start + BLOCK] = b"\xff" * min(BLOCK, num_bytes - start)
        first = ctypes.c_char.from_buffer(buffer)
        address, part = ctypes.addressof(first), num_bytes // threads
        best = min(_pass(memchr, address, part, threads) for _ in range(PASSES))
        del first  # the map cannot be closed while it is referred to
    return part * threads / best / 1e9


def _pass(memchr: "ctypes._NamedFuncPointer", address: int, part: int, threads: int) -> float:
    """Return the seconds that `threads` threads take to read their parts."""
    readers = [threading.Thread(target=memchr, args=(address + i * part, 1, part)) for i in range(threads)]
    started = time.perf_counter()
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    return time.perf_counter() - started


def main() -> None:
    """Measure once."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.bandwidth", description=__doc__)
    parser.add_argument("num_bytes", type=int)
    parser.add_argument("threads", type=int)
    given = parser.parse_args()
    print(json.dumps({"gb_per_s": read_gb_per_s(given.num_bytes, given.threads)}))


if __name__ == "__main__":
    main()
