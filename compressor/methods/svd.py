"""`svd`: the best approximation of a given rank in the Frobenius norm (Eckart and Young, 1936)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.errors import check_range
from compressor.formats import LowRank
from compressor.methods.base import RankConfig, Statistics
from compressor.progress import Progress, silent


@dataclass(frozen=True, kw_only=True)
class Config(RankConfig):
    """Options of `svd`.

    Attributes:
        rank: how many singular values are kept.
    """


def compress(
    weight: Tensor, config: Config, statistics: Statistics | None = None, progress: Progress = silent
) -> LowRank:
    """Return the truncated SVD of `weight` [out, in]."""
    check_range("rank", config.rank, 1, min(weight.shape))
    left, right = truncated_svd(weight, config.rank)
    return LowRank.of(left, right, config.codec)


def truncated_svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return U S^(1/2) [out, r] and S^(1/2) V^T [r, in] of the `rank` largest singular values, fp32.

    Splitting S evenly gives both factors the same range, which is kind to low-bit codecs.
    """
    if matrix.shape[0] < matrix.shape[1]:
        right, left = truncated_svd(matrix.T, rank)
        return left.T, right.T
    # V and S^2 from the small Gram matrix in fp64: seconds where an SVD of [50257, 768] takes a minute.
    tall = matrix.double()
    squares, vectors = torch.linalg.eigh(tall.T @ tall)  # ascending
    roots = squares[-rank:].clamp_min(0).sqrt().sqrt().flip(0)  # S^(1/2) [r]
    basis = vectors[:, -rank:].flip(1)  # V [in, r]
    inverse = torch.where(roots > 0, 1 / roots, 0)
    return (tall @ basis * inverse).float(), (basis * roots).T.float()
