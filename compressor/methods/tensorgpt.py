"""`tensorgpt`: one tensor train per token embedding, found by TT-SVD.

Reference: TensorGPT, arXiv 2307.00526, algorithm 1. TT-SVD: Oseledets, "Tensor-Train Decomposition",
SIAM J. Sci. Comput. 33 (2011), algorithm 1, whose theorem 2.2 bounds the error by the discarded
singular values.
"""

from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from compressor.artifact.shapes import padded_binary_modes, prime_modes, tt_ranks
from compressor.formats import TokenMPS
from compressor.formats.base import blocks
from compressor.methods.base import RankConfig, Statistics
from compressor.progress import Progress, silent

BLOCK_ROWS = 2048  # rows factorised at a time: 17 MB in fp64 at 1024 values


@dataclass(frozen=True, kw_only=True)
class Config(RankConfig):
    """Options of `tensorgpt`.

    Attributes:
        rank: cap of the inner ranks R. At width 768, padded: 1 -> 38.40x, 4 -> 3.31x.
        padded: reshape to 2**N with zeros appended, as published; else to the prime factors.
    """

    rank: int = 2
    padded: bool = True

    def check(self, shape: tuple[int, int], heads: int) -> None:
        pass  # the rank is a cap


def compress(
    weight: Tensor, config: Config, statistics: Statistics | None = None, progress: Progress = silent
) -> TokenMPS:
    """Return one train per row of `weight` [V, D]."""
    vocabulary, width = weight.shape
    modes = padded_binary_modes(width) if config.padded else prime_modes(width)
    ranks = tt_ranks(modes, config.rank)
    padding = prod(modes) - width
    steps = progress(blocks(vocabulary, BLOCK_ROWS), label="TT-SVD per token", total=-(-vocabulary // BLOCK_ROWS))
    packed = [tt_svd(F.pad(weight[b.start : b.stop].double(), (0, padding)), modes, ranks).float() for b in steps]
    return TokenMPS.of(torch.cat(packed), in_features=width, modes=modes, ranks=ranks, codec=config.codec)


def tt_svd(rows: Tensor, modes: list[int], ranks: list[int]) -> Tensor:
    """Cut every row into a train of cores.

    The left singular vectors of each unfolding A come from its smaller Gram matrix A A^T, at most
    (R n_k) square, in fp64: 30 times faster than an SVD of A and exact to 1e-8 of its norm, since
    the remainder U^T A is computed from A itself.

    Args:
        rows: [M, prod(modes)], fp64.
        modes: n_1..n_N.
        ranks: r_0..r_N.

    Returns:
        The cores, packed in order: [M, values].
    """
    count = rows.shape[0]
    cores = []
    rest = rows.reshape(count, 1, -1)  # [M, r_0, n_1 ... n_N]
    for mode, left, right in zip(modes[:-1], ranks[:-2], ranks[1:-1], strict=True):
        unfolding = rest.reshape(count, left * mode, -1)  # [M, r_{k-1} n_k, n_{k+1} ... n_N]
        _, vectors = torch.linalg.eigh(unfolding @ unfolding.mT)
        basis = vectors[:, :, -right:]  # [M, r_{k-1} n_k, r_k], the largest eigenvalues come last
        cores.append(basis.reshape(count, -1))
        rest = basis.mT @ unfolding  # [M, r_k, n_{k+1} ... n_N]
    return torch.cat([*cores, rest.reshape(count, -1)], dim=-1)
