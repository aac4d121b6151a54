"""`rotated_svd`: a whitened SVD whose factors are made to be stored in few bits.

1. The kept components of the whitened SVD are scaled to equal variance and mixed by a random rotation, so that
   every number of a row uses all levels of the codec (rotations: QuIP#, arXiv 2402.04396, section 3).
2. The right factor is rounded with feedback (GPTQ) for the inputs W is multiplied by.
3. The left factor is fitted to that right factor by least squares, which makes up for its rounding,
   and rounded with feedback for the inputs that it is multiplied by, right x.

Equal variances leave the components' importance to the feedback: its error is the geometric mean of their
variances, where rounding scaled components to nearest gives the arithmetic mean.
"""

from copy import deepcopy
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from compressor.codecs import Coded
from compressor.errors import check_range
from compressor.formats import LowRank
from compressor.methods import gptq
from compressor.methods.base import Statistics, WhitenedConfig, needed
from compressor.methods.whitened_svd import root_of
from compressor.progress import Progress, silent

ROWS = 4096  # whose products exist in fp64 at a time


@dataclass(frozen=True, kw_only=True)
class Config(WhitenedConfig):
    """Options of `rotated_svd`.

    Attributes:
        rank: how many singular values are kept.
        codec: of the left factor [out, r]: int8, one of groups such as int3-row, or of a trellis.
        right_codec: of the right factor [r, in].
        damping: added to the second moments' diagonals, as a share of their mean.
        seed: of the rotation.
    """

    codec: str = "int4-row"
    right_codec: str = "int4-row"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        gptq.Config(codec=self.codec)
        gptq.Config(codec=self.right_codec)
        check_range("seed", self.seed, 0, 2**63 - 1)


def compress(
    weight: Tensor, config: Config, statistics: Statistics | None = None, progress: Progress = silent
) -> LowRank:
    """Return the factors of `weight` [out, in], as they are stored.

    Raises:
        ValueError: if there are no statistics, or the rank is too large.
    """
    right, left, known = _fitted(weight, replace(config, codec=Config.codec), needed(statistics, "rotated_svd"))
    coded = {"left": _rounded(left, config.codec, config, known, progress), "right": deepcopy(right)}
    options = {"rank": config.rank, "row_scale": False, "column_offset": False}
    return LowRank((weight.shape[0], weight.shape[1]), coded, options)


def compress_rows(weight: Tensor, rows: Tensor, config: Config, statistics: Statistics | None) -> Tensor:
    """Return some rows [n, in] of the product that `compress` finds, since the right factor is that of all rows."""
    right, left, known = _fitted(weight, replace(config, codec=Config.codec), needed(statistics, "rotated_svd"))
    return _rounded(left[rows], config.codec, config, known.of_rows(rows), silent).decode() @ right.decode()


@lru_cache(maxsize=1)  # the left factors of one rank share it, whatever their codec
def _fitted(weight: Tensor, config: Config, statistics: Statistics) -> tuple[Coded, Tensor, Statistics]:
    """Return the right factor as stored, the left one fitted to it [out, r], and the statistics of right x."""
    check_range("rank", config.rank, 1, min(weight.shape))
    moment = statistics.second_moment
    wide = _rotated_right(weight, config, statistics)  # [r, in]
    right = _rounded(wide, config.right_codec, config, Statistics(second_moment=moment), silent)
    decoded = right.decode().double()
    seen = decoded @ moment.double()  # [r, in]
    inner = seen @ decoded.T  # second moment of right x [r, r]
    root = root_of(inner, config.damping / 10)
    parts = (torch.cholesky_solve(seen @ part.double().T, root).T.float() for part in weight.split(ROWS))
    left = torch.cat([*parts])  # W M R^T (R M R^T)^-1 [out, r]
    return right, left, replace(statistics, second_moment=inner.float(), difference_moment=None)


def _rotated_right(weight: Tensor, config: Config, statistics: Statistics) -> Tensor:
    """Return the right factor [r, in], fp32, whose left factor's columns have equal weighted variances."""
    values, spread = (found[-config.rank :] for found in _spectrum(weight, config.damping, statistics))
    mean = values.mean()
    right = spread / torch.where(mean > 0, mean, 1).sqrt()  # [r, in], zeros for a matrix of zeros
    random = torch.Generator().manual_seed(config.seed)
    mixed = torch.randn(config.rank, config.rank, dtype=torch.float64, generator=random)
    rotation: Tensor = torch.linalg.qr(mixed)[0]
    return (rotation @ right).float()


@lru_cache(maxsize=1)  # all ranks share it
def _spectrum(weight: Tensor, damping: float, statistics: Statistics) -> tuple[Tensor, Tensor]:
    """Return the weighted variances [k], rising, and right factors of such variances [k, in], k = min(out, in)."""
    root = root_of(statistics.second_moment, damping)
    weights = torch.ones(len(weight)) if statistics.row_weights is None else statistics.row_weights
    scales = weights.double().sqrt().unsqueeze(-1)
    if len(weight) < weight.shape[1]:
        weighted = scales * weight.double()
        seen = weighted @ root  # [out, in]
        values, vectors = torch.linalg.eigh(seen @ seen.T)
        return values.clamp_min(0), vectors.T @ weighted  # U^T A = S V^T, and so without the root's inverse
    variance = torch.zeros_like(root)
    for part, scale in zip(weight.split(ROWS), scales.split(ROWS), strict=True):
        seen = scale * part.double() @ root  # [rows, in]
        variance += seen.T @ seen
    values, vectors = torch.linalg.eigh(variance)
    values = values.clamp_min(values[-1] * 1e-12)
    right = torch.linalg.solve_triangular(root, vectors.T, upper=False, left=False)
    return values, values.sqrt().unsqueeze(-1) * right


def _rounded(values: Tensor, codec: str, config: Config, statistics: Statistics, progress: Progress) -> Coded:
    options = gptq.Config(codec=codec, damping=config.damping)
    return gptq.compress(values.contiguous(), options, statistics, progress).matrix
