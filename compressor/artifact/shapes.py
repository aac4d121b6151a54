"""Integers only: mode sizes, ranks and counts of tensor trains."""

from collections.abc import Sequence
from itertools import combinations_with_replacement, zip_longest
from math import ceil, floor, prod


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


def ttm_modes(in_features: int, out_features: int, rank: int) -> tuple[list[int], list[int]]:
    """Return TTM's published (in_modes, out_modes): exact, and of an order that depends on the rank.

    The prime factors of both sides, ascending, are padded with 1s to one length, zipped, and merged from left to
    right until a core's in * out reaches the rank; what is left over is the last core.
    768 -> 3072 at rank 64: (8, 8, 12, 1) and (8, 8, 8, 6).

    Reference: arXiv 2306.02697 and its authors' code.
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1, not {rank}")
    pairs = zip_longest(prime_factors(in_features), prime_factors(out_features), fillvalue=1)
    merged: list[tuple[int, int]] = []
    open_ = (1, 1)
    for i, o in pairs:
        open_ = (open_[0] * i, open_[1] * o)
        if prod(open_) >= rank:
            merged.append(open_)
            open_ = (1, 1)
    if open_ != (1, 1) or not merged:
        merged.append(open_)
    return [i for i, _ in merged], [o for _, o in merged]


def left_capped_ranks(modes: Sequence[int], rank: int) -> list[int]:
    """Return TTM's published ranks r_k = min(prod modes[:k], rank), of which the last ones may be too large.

    `modes` are in_k * out_k. `tt_ranks` also caps from the right, at no loss.
    """
    tt_ranks(modes, rank)  # the same checks
    return [1, *(min(prod(modes[:k]), rank) for k in range(1, len(modes))), 1]


def balanced_modes(n: int, order: int) -> list[int]:
    """Return `order` ascending modes near n**(1 / order) whose product is n, or as little above it as can be.

    An exact product is taken if every mode is within a factor 2 of the root (768 -> 8 * 8 * 12); otherwise the
    least padding among modes within a factor 1.15 (50257 = 29 * 1733 -> 14 * 15 * 15 * 16 = 50400). Of equal
    products, the most nearly equal modes.

    Raises:
        ValueError: if n or order is below 1.
    """
    if n < 1 or order < 1:
        raise ValueError(f"n and order must be at least 1, not {n} and {order}")
    exact = _closest_modes(n, order, 2.0)
    return exact if prod(exact) == n else _closest_modes(n, order, 1.15)


def _closest_modes(n: int, order: int, spread: float) -> list[int]:
    root = n ** (1 / order)
    low, high = max(1, floor(root / spread)), ceil(root * spread)
    heads = combinations_with_replacement(range(low, high + 1), order - 1)
    tries = ([*head, max(-(-n // prod(head)), head[-1] if head else 1)] for head in heads)
    return min((modes for modes in tries if modes[-1] <= high), key=lambda modes: (prod(modes), modes[-1] - modes[0]))
