"""The runtime's cases, computed again by another build of it.

numpy is all that this needs, so that it runs under sanitizers and on processors that are only emulated.
"""

import itertools
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from compressor.runtime._decoder import INSTRUCTIONS, Matrix, draw, judge
from compressor.runtime.kv import KV_DTYPES, Cache
from compressor.runtime.matrices import matmul, matrix_of, rows
from compressor.runtime.model import Model

Array = NDArray[Any]
Stored = tuple[dict[str, Array], Any]  # tensors and what has the attributes of a Spec
PIECES = [[5, 0, 9], [1, 1, 1], [0, 2, 2], [1, 1, 0], [57, 60, 52]]  # tokens of each text that a step reads


class Products(NamedTuple):
    """A matrix, and rows that it multiplies, rounded to 16 bits or 8."""

    stored: Stored
    x: Array
    activations: int = 16

    def answers(self, threads: int, instructions: str) -> Iterator[Array]:
        """Yield products with several numbers of rows, and rows."""
        matrix = matrix_of(*self.stored, self.activations)
        for count in (1, 3, len(self.x)):
            yield matmul(matrix, self.x[:count], threads, instructions)
        yield rows(matrix, np.arange(matrix.shape[0])[-40:], threads)


class Steps(NamedTuple):
    """A decoder, and tokens [texts, T] that it reads piece by piece."""

    config: Any
    matrices: dict[str, Stored]
    vectors: dict[str, Array]
    tokens: Array
    activations: int

    def answers(self, threads: int, instructions: str) -> Iterator[Array]:
        """Yield hidden states and logits, and what stands in the KV cache at the end."""
        matrices = {name: matrix_of(*stored, self.activations) for name, stored in self.matrices.items()}
        decoder = Model(self.config, matrices, self.vectors)._decoder
        for dtype in KV_DTYPES:
            cache = Cache(self.config, len(self.tokens) + 1, self.tokens.shape[1], dtype)
            for counts in PIECES:
                slots = np.arange(len(counts)).repeat(counts)
                start = cache.lengths[:-1]
                positions = np.concatenate([np.arange(n) + first for n, first in zip(counts, start, strict=True)])
                hidden = np.empty((len(slots), self.config.n_embd), np.float32)
                logits = np.empty((2, self.config.vocab_size), np.float32)
                decoder.step(
                    self.tokens[slots, positions],
                    slots,
                    positions,
                    cache.table,
                    cache.keys,
                    cache.values,
                    wanted=np.array([len(slots) - 1, 0]),
                    logits=logits,
                    hidden=hidden,
                    threads=threads,
                    instructions=instructions,
                )
                cache.lengths[:-1] += counts
                yield from (hidden, logits)
            yield from (cache.keys, cache.values)


class Verdicts(NamedTuple):
    """Logits [n, V] that are judged."""

    logits: Array
    reference: Array
    targets: Array

    def answers(self, threads: int, instructions: str) -> Iterator[Array]:
        """Yield verdicts with and without a reference."""
        for reference in (self.reference, None):
            out = np.empty((len(self.logits), 5))
            judge(self.logits, self.targets, out, reference=reference, threads=threads, instructions=instructions)
            yield out


class Draws(NamedTuple):
    """Logits [n, V] that tokens are drawn from."""

    logits: Array

    def answers(self, threads: int, instructions: str) -> Iterator[Array]:
        """Yield tokens drawn in every way."""
        n = len(self.logits)
        ways = itertools.product([0, 0.7, 30], [0, 1, 40, 10**6], [1.0, 0.9], [1.0, 0.5], [0.0, 0.02, 1.0])
        for heat, k, p, typical, min_p in ways:
            chosen = np.empty(n, np.int64)
            draw(
                self.logits,
                chosen,
                temperature=np.full(n, heat, np.float32),
                top_k=np.full(n, k),
                top_p=np.full(n, p),
                typical_p=np.full(n, typical),
                min_p=np.full(n, min_p),
                uniform=np.linspace(0, 1, n, endpoint=False),
                threads=threads,
                instructions=instructions,
            )
            yield chosen


Case = Products | Steps | Verdicts | Draws
BAD: dict[str, Callable[[Any], object]] = {
    "x must have rows of 4 values": lambda m: m.matmul(np.zeros((1, 5), np.float32), np.zeros((1, 2), np.float32)),
    "out must have shape": lambda m: m.matmul(np.zeros((1, 4), np.float32), np.zeros((1, 3), np.float32)),
    "instructions must be one of": lambda m: matmul(m, np.zeros((1, 4), np.float32), instructions="mmx"),
    "threads must be between": lambda m: matmul(m, np.zeros((1, 4), np.float32), threads=0),
    "left .* must be coded values": lambda m: Matrix.low_rank(m, m),
    "modes must multiply": lambda m: Matrix.token_mps(m, modes=[2], ranks=[1, 1], in_features=3),
    "ranks must begin and end with 1": lambda m: Matrix.token_mps(m, modes=[2], ranks=[1, 2], in_features=2),
    "modes must be positive": lambda m: Matrix.token_mps(m, modes=[0], ranks=[1, 1], in_features=2),
    "columns must ascend": lambda m: Matrix.sparse(m, np.zeros((2, 4), np.int32), in_features=9),
    "a block must have shape": lambda m: Matrix.stacked([m, Matrix.floats(np.zeros((1, 3), np.float32))]),
    "correction must have shape": lambda m: Matrix.residual(m, Matrix.floats(np.zeros((2, 3), np.float32))),
    "bits must be 2": lambda m: integers(m, bits=5),
    "bits must be between 1 and 4": lambda m: integers(m, bits=8, trellis=True),
    "group between": lambda m: integers(m, group=4),
    "activation_bits must be 16 or 8": lambda m: integers(m, activation_bits=4),
    "a trellis has one group per row": lambda m: integers(m, group=1, trellis=True),
}


def integers(codes: Any, **options: Any) -> Matrix:
    """Return a matrix of codes in 4 bits, 3 columns and one group, but for `options`."""
    plain = {"bits": 4, "columns": 3, "group": 3, "activation_bits": 16, "trellis": False, "rotated": False}
    return Matrix.integers(codes, codes, None, **plain | options)


def plain(spec: Any) -> SimpleNamespace:
    """Return a Spec without pydantic."""
    return SimpleNamespace(**dict(spec) | {"inner": {name: plain(inner) for name, inner in spec.inner.items()}})


def check(case: Case, expected: list[Array], threads: int, instructions: str) -> None:
    """Raise unless a case has the same answers, bit for bit."""
    for found, one in zip(case.answers(threads, instructions), expected, strict=True):
        np.testing.assert_array_equal(found, one)


def main(paths: list[str]) -> None:
    """Check the cases of files, and what is refused."""
    cases: list[tuple[Case, list[Array]]] = []
    for path in paths:
        with open(path, "rb") as file:
            cases += pickle.load(file)  # noqa: S301
    for (case, expected), instructions, threads in itertools.product(cases, INSTRUCTIONS, (3, 1)):
        check(case, expected, threads, instructions)
    with ThreadPoolExecutor(4) as pool:  # callers that meet
        list(pool.map(lambda case: check(case[0], case[1], 2, INSTRUCTIONS[-1]), cases[::-8]))
    for message, call in BAD.items():
        try:
            call(Matrix.floats(np.ones((2, 4), np.float32)))
        except (ValueError, TypeError):
            continue
        raise AssertionError(f"not refused: {message}")
