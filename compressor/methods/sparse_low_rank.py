"""`sparse_low_rank`: a low-rank matrix, and the entries that it gets most wrong.

Both are found in turn: the low-rank matrix nearest to what the kept entries leave, then in every row the entries of
the rest whose loss costs most, each weighed by the mean square of the input that it is multiplied by.

Reference: DSEE (arXiv 2111.00160), whose decomposition of weight updates this is, here for a given matrix and
weighted as in whitened_svd.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.codecs import codec_named
from compressor.errors import check_range
from compressor.formats import LowRank, Residual, Sparse
from compressor.methods.base import Statistics, WhitenedConfig
from compressor.methods.whitened_svd import root_of, whitened_factors
from compressor.progress import Progress, silent


@dataclass(frozen=True, kw_only=True)
class Config(WhitenedConfig):
    """Options of `sparse_low_rank`.

    Attributes:
        rank: of the low-rank matrix.
        damping: as in whitened_svd; used where statistics are given.
        kept: entries per row that are kept.
        kept_codec: how their values are stored; every index takes 2 bytes, or 4 from a width of 32768.
        rounds: how often both are found.
    """

    kept: int = 2
    kept_codec: str = "fp16"
    rounds: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        codec_named(self.kept_codec)
        if self.kept < 1:
            raise ValueError(f"kept must be at least 1, not {self.kept}")
        check_range("rounds", self.rounds, 1, 100)

    def check(self, shape: tuple[int, int], heads: int) -> None:
        super().check(shape, heads)
        check_range("kept", self.kept, 1, shape[1])


def compress(
    weight: Tensor, config: Config, statistics: Statistics | None = None, progress: Progress = silent
) -> Residual:
    """Return `weight` [out, in] as low-rank factors and `kept` entries per row, which make up for their codec too.

    The factors are whitened where statistics are given.
    """
    check_range("rank", config.rank, 1, min(weight.shape))
    check_range("kept", config.kept, 1, weight.shape[1])
    root, row_weights = torch.eye(weight.shape[1]).double(), None
    if statistics is not None:
        root, row_weights = root_of(statistics.second_moment, config.damping), statistics.row_weights
    sizes = root.norm(dim=1).float()  # of the inputs, root mean square [in]
    weight = weight.float()
    rest = weight  # of which the low-rank matrix is fitted
    for _ in progress(range(config.rounds), label="Low rank and sparse", total=config.rounds):
        left, right = whitened_factors(rest, config.rank, root, row_weights)
        low_rank = LowRank.of(left, right, config.codec)
        missing = weight - low_rank.dense()  # [out, in]
        columns = (missing * sizes).abs().topk(config.kept, dim=1).indices  # [out, k]
        values = missing.gather(1, columns)
        rest = weight.scatter_add(1, columns, -values)
    sparse = Sparse.of(values, columns, weight.shape[1], config.kept_codec)
    return Residual.of(low_rank, sparse)
