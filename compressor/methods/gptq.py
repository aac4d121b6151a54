"""`gptq`: round column after column, and let the columns to come make up for the error so far.

Reference: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", arXiv 2210.17323, algorithm 1.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from compressor.codecs import Codec, Coded, Grid, codec_named, finite, power_of_2
from compressor.codecs.rotation import rotated_moment
from compressor.errors import check_range
from compressor.formats import Dense
from compressor.formats.base import blocks
from compressor.methods.base import CodecConfig, Statistics, needed
from compressor.methods.whitened_svd import roots_of
from compressor.progress import Progress, silent

BLOCK_COLUMNS = 32  # columns whose errors are passed on together: large products instead of small ones


@dataclass(frozen=True, kw_only=True)
class Config(CodecConfig):
    """Options of `gptq`.

    Attributes:
        codec: int8, one of groups such as int4, int3-g128 or int2-g32-zp, or of a trellis such as tr2; -h rotates.
        damping: added to the second moment's diagonal, as a share of its mean.
        act_order: round the columns with the largest inputs first; scales are then those of round-to-nearest.
    """

    codec: str = "int4"
    damping: float = 0.01
    act_order: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _rounding_codec(self.codec)
        check_range("damping", self.damping, 0, 1e6)


def compress(
    weight: Tensor, config: Config, statistics: Statistics | None = None, progress: Progress = silent
) -> Dense:
    """Return `weight` [out, in], rounded so that its products with the inputs change little.

    Raises:
        ValueError: if there are no statistics.
    """
    statistics = needed(statistics, "gptq")
    rows, columns = weight.shape
    # In units of powers of 2 near their largest values, rows of any size are rounded alike.
    codec = _rounding_codec(config.codec)
    weight = codec.rotated(finite(weight, config.codec))
    unit = power_of_2(weight.abs().amax(1, keepdim=True))  # [out, 1]
    weight = weight / unit
    row_weights = (unit / unit.max()).squeeze(1).square()
    if statistics.row_weights is not None:
        row_weights = row_weights * statistics.row_weights
    grid = codec.grid(weight, row_weights)
    seen = statistics.second_moment if statistics.difference_moment is None else statistics.difference_moment
    moment, order, feedback = _order_and_feedback(seen, codec.is_rotated, config.damping, config.act_order)
    renew = grid.renews and not config.act_order
    rounded = _rounded(weight[:, order], feedback, grid, order, renew=renew, progress=progress)[:, order.argsort()]
    parts = grid.parts(grid.refit(weight, rounded, moment), unit)
    return Dense.coded_as(Coded(codec, (rows, columns), parts))


def _rounding_codec(name: str) -> Codec:
    codec = codec_named(name)
    if codec.is_float:
        raise ValueError(f"codec must be of integers, as int8, int4-g128 or tr2-h, for gptq; not {name!r}")
    return codec


@lru_cache(maxsize=2)  # the codecs and ranks that are tried for one matrix share them
def _order_and_feedback(
    moment: Tensor, is_rotated: bool, damping: float, act_order: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the inputs' moment, the order in which columns are rounded [in], and how errors are fed back [in, in]."""
    moment = rotated_moment(moment) if is_rotated else moment
    order = moment.diagonal().argsort(descending=True) if act_order else torch.arange(len(moment))
    return moment, order, feedback_of(moment[order][:, order], damping)


def feedback_of(second_moment: Tensor, damping: float) -> Tensor:
    """Return the upper triangular C [in, in], fp32, with C^T C the inverse of the damped second moment.

    Inputs that say nothing give the identity, with which columns are rounded to nearest.
    """
    feedback: Tensor
    for root in roots_of(second_moment, damping):
        feedback, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(root), upper=True)
        if not failed and torch.isfinite(feedback).all():
            break
    found: Tensor = feedback.float()
    return found


def _rounded(weight: Tensor, feedback: Tensor, grid: Grid, order: Tensor, *, renew: bool, progress: Progress) -> Tensor:
    """Return `weight` [out, in], its columns in `order`, with every value a level of the grid."""
    rest = weight.T.clone(memory_format=torch.contiguous_format)  # [in, out], since columns are worked on
    rounded = torch.empty_like(rest)
    size = max(1, BLOCK_COLUMNS // grid.group) * grid.group if renew else BLOCK_COLUMNS  # no group straddles blocks
    spans = blocks(len(rest), size)
    for span in progress(spans, label="GPTQ", total=len(spans)):
        errors = torch.empty(len(span), len(weight))  # [block, out]
        for i, k in enumerate(span):
            if renew and k % grid.group == 0:
                grid.renew(k, rest.T)
            rounded[k] = grid.round(rest[k], int(order[k]))
            errors[i] = (rest[k] - rounded[k]) / feedback[k, k]
            rest[k + 1 : span.stop].addr_(feedback[k, k + 1 : span.stop], errors[i], alpha=-1)
        rest[span.stop :] -= feedback[span.start : span.stop, span.stop :].T @ errors
    return rounded.T
