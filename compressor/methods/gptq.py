"""`gptq`: round column after column, and let the columns to come make up for the error so far.

Reference: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", arXiv 2210.17323, algorithm 1.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from compressor.errors import check_range
from compressor.methods.base import CodecConfig, Statistics, needed
from compressor.methods.whitened_svd import roots_of
from compressor.progress import Progress, silent
from compressor.runtime.codecs import Coded, GroupCodec, Int8Codec, codec_named, finite, power_of_2
from compressor.runtime.formats import Dense
from compressor.runtime.formats.base import blocks

BLOCK_COLUMNS = 128  # columns whose errors are passed on together: large products instead of small ones


@dataclass(frozen=True, kw_only=True)
class Config(CodecConfig):
    """Options of `gptq`.

    Attributes:
        codec: int8, or one of groups such as int4, int3-g128 or int2-g32-zp.
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


class Grid:
    """The levels that every value of a matrix [out, in] may take, one scale and zero per group of a row.

    Attributes:
        scale, zero: [out, groups].
    """

    def __init__(self, codec: Int8Codec | GroupCodec, weight: Tensor) -> None:
        """Find the levels of round-to-nearest."""
        self.codec = codec
        if isinstance(codec, GroupCodec):
            self.group = codec.group or weight.shape[1]
            self.low, self.high = 0, 2**codec.bits - 1
            self.scale, self.zero = codec.search(weight)
        else:
            self.group = weight.shape[1]
            self.low, self.high = -127, 127
            self.scale = codec.encode(weight)["scale"].float()
            self.zero = torch.zeros_like(self.scale)

    def renew(self, column: int, weight: Tensor) -> None:
        """Find the levels of the group that begins at `column` anew, for weights [out, in] that have moved."""
        if isinstance(self.codec, GroupCodec):
            scale, zero = self.codec.search(weight[:, column : column + self.group].float())
            self.scale[:, column // self.group], self.zero[:, column // self.group] = scale[:, 0], zero[:, 0]

    def round(self, values: Tensor, column: int) -> Tensor:
        """Return the levels nearest to the values [out] of a column."""
        scale, zero = self.scale[:, column // self.group], self.zero[:, column // self.group]
        codes = torch.round((values - zero) / torch.where(scale > 0, scale, 1))
        return codes.clamp(self.low, self.high) * scale + zero

    def parts(self, rounded: Tensor, unit: Tensor) -> dict[str, Tensor]:
        """Return the codec's parts of values [out, in] that are levels, in units [out, 1]."""
        if isinstance(self.codec, GroupCodec):
            return self.codec.encode_with(rounded * unit, self.scale * unit, self.zero * unit)
        codes = torch.round(rounded / torch.where(self.scale > 0, self.scale, 1))
        return {"codes": codes.to(torch.int8), "scale": self.codec.stored_scale(self.scale * unit)}


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
    weight = finite(weight, config.codec)
    unit = power_of_2(weight.abs().amax(1, keepdim=True))  # [out, 1]
    weight = weight / unit
    grid = Grid(_rounding_codec(config.codec), weight)
    order, feedback = _order_and_feedback(statistics, config.damping, config.act_order)
    renew = isinstance(grid.codec, GroupCodec) and not config.act_order
    rounded = _rounded(weight[:, order], feedback, grid, order, renew=renew, progress=progress)
    parts = grid.parts(rounded[:, order.argsort()], unit)
    return Dense.coded_as(Coded(grid.codec, (rows, columns), parts))


def _rounding_codec(name: str) -> Int8Codec | GroupCodec:
    codec = codec_named(name)
    if not isinstance(codec, Int8Codec | GroupCodec):
        raise ValueError(f"codec must be int8, or int4, int3 or int2 with any groups, for gptq; not {name!r}")
    return codec


@lru_cache(maxsize=1)  # the codecs that are tried for one matrix share them
def _order_and_feedback(statistics: Statistics, damping: float, act_order: bool) -> tuple[Tensor, Tensor]:
    """Return the order in which columns are rounded [in], and how their errors are fed back [in, in]."""
    moment = statistics.second_moment if statistics.difference_moment is None else statistics.difference_moment
    order = moment.diagonal().argsort(descending=True) if act_order else torch.arange(len(moment))
    return order, feedback_of(moment[order][:, order], damping)


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
    rest, rounded = weight.clone(), torch.empty_like(weight)
    size = max(1, BLOCK_COLUMNS // grid.group) * grid.group if renew else BLOCK_COLUMNS  # no group straddles blocks
    spans = blocks(weight.shape[1], size)
    for span in progress(spans, label="GPTQ", total=len(spans)):
        errors = torch.empty(len(weight), len(span))  # [out, block]
        for i, k in enumerate(span):
            if renew and k % grid.group == 0:
                grid.renew(k, rest)
            rounded[:, k] = grid.round(rest[:, k], int(order[k]))
            errors[:, i] = (rest[:, k] - rounded[:, k]) / feedback[k, k]
            rest[:, k + 1 : span.stop] -= errors[:, i : i + 1] * feedback[k, k + 1 : span.stop]
        rest[:, span.stop :] -= errors @ feedback[span.start : span.stop, span.stop :]
    return rounded
