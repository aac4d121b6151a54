"""Find the levels of trellis codes for normal values: `python -m compressor.experiments.trellis_levels`.

By Lloyd's algorithm: in turns, values are given their nearest paths, and each level becomes the mean of the values that
took it. Of many random beginnings the three best are carried on with more values. Prints what trellis.h holds; another
run's random numbers give other levels that are as good.
"""

from statistics import NormalDist

import numpy as np
import torch
from numpy.typing import NDArray

from compressor.codecs._trellis import search
from compressor.codecs.trellis import windows
from compressor.runtime._decoder import LANES

HALF = 128  # windows; the others have the same levels with the other sign
ROWS = 1024
BEGINNINGS = 40
LARGEST = 127  # level that is stored

Levels = NDArray[np.float32]


def refined(levels: Levels, bits: int, seed: int, rounds: int, count: int) -> tuple[Levels, float]:
    """Return better levels [HALF] after so many rounds on `count` values each, and the squared error of new values."""
    random = np.random.default_rng(seed)
    error = np.inf
    for _ in range(rounds + 1):
        values = random.standard_normal((count // ROWS, ROWS)).astype(np.float32)
        taken, rounded = _search(values, levels, bits)
        error = float(np.square(rounded - values).mean())
        turned = np.where(taken < HALF, values, -values).ravel()
        found = np.bincount(taken.ravel() % HALF, minlength=HALF)
        sums = np.bincount(taken.ravel() % HALF, turned, minlength=HALF)
        levels, before = np.where(found > 0, sums / np.maximum(found, 1), levels).astype(np.float32), levels
    return before, error


def beginning(seed: int) -> Levels:
    """Return the means of equal shares of a normal distribution's positive half, in random order."""
    shares = [NormalDist().inv_cdf(0.5 + (i + 0.5) / (2 * HALF)) for i in range(HALF)]
    return np.random.default_rng(seed).permutation(np.array(shares, np.float32))


def _search(values: Levels, levels: Levels, bits: int) -> tuple[NDArray[np.int64], Levels]:
    """Return the windows and the levels of the paths nearest to values [columns, rows]."""
    codes, rounded = np.empty(values.shape, np.uint8), np.empty_like(values)
    both = np.concatenate([levels, -levels])
    search(values, np.ones(ROWS, np.float32), levels=both, codes=codes, rounded=rounded, bits=bits, threads=1)
    paths = torch.from_numpy(codes.reshape(-1, LANES, 1).astype(np.int64))
    return windows(paths, bits).numpy().reshape(values.shape), rounded


def main() -> None:
    """Print levels, their squared error on normal values, and how many of them are a standard deviation."""
    for bits in range(1, 5):
        tried = [(*refined(beginning(seed), bits, seed, 30, 1 << 15), seed) for seed in range(BEGINNINGS)]
        best = sorted(tried, key=lambda found: found[1])[:3]
        levels, error = min((refined(start, bits, seed, 100, 1 << 17) for start, _, seed in best), key=lambda f: f[1])
        unit = LARGEST / float(np.abs(levels).max())
        print(f"{bits} bits, error {error:.5f}, {unit:.2f} a deviation: {np.rint(levels * unit).astype(int).tolist()}")


if __name__ == "__main__":
    main()
