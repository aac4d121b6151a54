"""`residual`: a quantised matrix and a low-rank correction of what the rounding left.

References: LQER (arXiv 2402.02446) corrects once; CALDERA (arXiv 2405.18886, algorithm 1) takes turns, so that what the
correction holds need not be rounded at all. Here the rounding is GPTQ's, and the correction is whitened.
"""

from dataclasses import dataclass

from torch import Tensor

from compressor.codecs import codec_named
from compressor.errors import check_range
from compressor.formats import LowRank, Residual
from compressor.methods import gptq
from compressor.methods.base import Statistics, WhitenedConfig, needed
from compressor.methods.whitened_svd import root_of, whitened_factors
from compressor.progress import Progress, silent


@dataclass(frozen=True, kw_only=True)
class Config(WhitenedConfig):
    """Options of `residual`.

    Attributes:
        rank: of the correction.
        codec: of the base: int8, or one of groups such as int3-row.
        damping: as in gptq and whitened_svd.
        factor_codec: of the correction's factors.
        rounds: how often both are found; the first time the base is rounded as if nothing corrected it.
    """

    rank: int = 8
    codec: str = "int3"
    factor_codec: str = "int8"
    rounds: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        gptq.Config(codec=self.codec)
        codec_named(self.factor_codec)
        check_range("rounds", self.rounds, 1, 100)


def compress(
    weight: Tensor, config: Config, statistics: Statistics | None = None, progress: Progress = silent
) -> Residual:
    """Return `weight` [out, in] as a base in few bits and the low-rank matrix that corrects its products best.

    Of all rounds the one with the least weighted error is kept, so that a round more never hurts.

    Raises:
        ValueError: if there are no statistics, or the rank is too large.
    """
    statistics = needed(statistics, "residual")
    check_range("rank", config.rank, 1, min(weight.shape))
    root = root_of(statistics.second_moment, config.damping)
    rounding = gptq.Config(codec=config.codec, damping=config.damping)
    weight, rest = weight.float(), weight.float()  # `rest` is what the base has to hold
    found: list[tuple[float, Residual]] = []
    for _ in progress(range(config.rounds), label="Base and correction", total=config.rounds):
        base = gptq.compress(rest, rounding, statistics)
        left, right = whitened_factors(weight - base.dense(), config.rank, root, statistics.row_weights)
        correction = LowRank.of(left, right, config.factor_codec)
        rest = weight - correction.dense()
        form = Residual.of(base, correction)
        found.append((_error(rest - base.dense(), root, statistics.row_weights), form))
    return min(found, key=lambda pair: pair[0])[1]


def _error(change: Tensor, root: Tensor, row_weights: Tensor | None) -> float:
    """Return sum_v w_v E (delta_v . x)^2 for a change [out, in] of the matrix."""
    squares = (change.double() @ root).square().sum(1)
    return float((squares if row_weights is None else squares * row_weights.double()).sum())
