"""`lpa`: attention whose q, k, v and output matrices are products of two low-rank factors.

Low-dimensional Projected Attention (arXiv 2411.02063, section 3) trains this shape from scratch; here its
factors are those of a given matrix, and q, k and v each get their own.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.errors import check_range
from compressor.formats import LowRank, Stacked
from compressor.methods.base import Statistics, WhitenedConfig
from compressor.methods.whitened_svd import root_of, whitened_factors
from compressor.progress import Progress, silent


@dataclass(frozen=True, kw_only=True)
class Config(WhitenedConfig):
    """Options of `lpa`.

    Attributes:
        rank: of each of q, k, v and the output; below D / 2 it saves bytes.
        damping: as in whitened_svd; used where statistics are given.
    """


def compress(
    weight: Tensor, config: Config, statistics: Statistics | None = None, progress: Progress = silent
) -> Stacked | LowRank:
    """Return q, k and v of a fused matrix [3 D, D] as three low-rank blocks, any other matrix as one.

    They are whitened where statistics are given; row weights are ignored.
    """
    check_range("rank", config.rank, 1, min(weight.shape))
    if statistics is None:
        root = torch.eye(weight.shape[1], dtype=torch.float64)
    else:
        root = root_of(statistics.second_moment, config.damping)
    fused = weight.shape[0] == 3 * weight.shape[1]
    factors = [whitened_factors(part, config.rank, root, None) for part in weight.chunk(3 if fused else 1)]
    forms = [LowRank.of(left, right, config.codec) for left, right in factors]
    return Stacked.of(forms) if fused else forms[0]
