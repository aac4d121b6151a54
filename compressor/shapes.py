"""Integers only: mode sizes, ranks and counts of tensor trains."""

from collections.abc import Sequence
from math import prod


def prime_factors(n: int) -> list[int]:
    """Return the prime factors of n in ascending order, e.g. 768 -> [2] * 8 + [3].

    Raises:
        ValueError: if n < 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}")
    factors = []
    p = 2
    while p * p <= n:
        while n % p == 0:
            factors.append(p)
            n //= p
        p += 1
    return [*factors, n] if n > 1 else factors


def padded_binary_modes(width: int) -> list[int]:
    """Return [2] * N for the smallest 2**N >= width: TensorGPT's padded modes (768 -> 2**10)."""
    if width < 1:
        raise ValueError(f"width must be at least 1, not {width}")
    return [2] * max(1, (width - 1).bit_length())


def prime_modes(width: int) -> list[int]:
    """Return the prime factors of width: TensorGPT's modes without padding (768 -> 2**8 * 3)."""
    return prime_factors(width) or [1]


def tt_ranks(modes: Sequence[int], rank: int) -> list[int]:
    """Return the N + 1 ranks of TT-SVD with rank cap `rank`; both boundary ranks are 1.

    r_k = min(prod modes[:k], prod modes[k:], rank), so no rank exceeds what a train can use.

    Raises:
        ValueError: if a mode or the rank is below 1.
    """
    if not modes or min(modes) < 1:
        raise ValueError(f"modes must be one or more positive integers, not {list(modes)}")
    if rank < 1:
        raise ValueError(f"rank must be at least 1, not {rank}")
    cuts = range(1, len(modes))
    return [1, *(min(prod(modes[:k]), prod(modes[k:]), rank) for k in cuts), 1]


def core_shapes(modes: Sequence[int], ranks: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return the shape [r_{k-1}, n_k, r_k] of every core."""
    return list(zip(ranks[:-1], modes, ranks[1:], strict=True))


def train_size(modes: Sequence[int], ranks: Sequence[int]) -> int:
    """Return how many values the cores of one train hold together."""
    return sum(prod(shape) for shape in core_shapes(modes, ranks))


def max_tt_rank(modes: Sequence[int]) -> int:
    """Return the largest rank a train over `modes` can use (at which it is exact)."""
    return max(tt_ranks(modes, prod(modes)))
