"""`direction_svd`: keep the directions of the rows, in closed form, and one scale per row.

1 - cos is half the squared error between unit vectors of nearly the same direction, so to first order the
best directions of a given rank are the truncated SVD of the row-normalised matrix (Eckart and Young, 1936).
What the auto-encoder of arXiv 2106.08181 learns, without learning, and with the rows' norms.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.codecs import Codec, Coded, codec_named, power_of_2
from compressor.errors import check_range
from compressor.formats import LowRank
from compressor.methods.base import Statistics, WhitenedConfig
from compressor.methods.whitened_svd import root_of, whitened_factors
from compressor.progress import Progress, silent


@dataclass(frozen=True, kw_only=True)
class Config(WhitenedConfig):
    """Options of `direction_svd`.

    Attributes:
        rank: how many directions the rows are made of.
        damping: as in whitened_svd; used where statistics are given.
    """


def compress(
    weight: Tensor, config: Config, statistics: Statistics | None = None, progress: Progress = silent
) -> LowRank:
    """Return the truncated SVD of the normalised rows of `weight` [out, in], each times its best scale.

    With statistics, directions and scales are those in the inputs' metric and the rows weigh what they matter.
    """
    check_range("rank", config.rank, 1, min(weight.shape))
    if statistics is None:
        root, row_weights = torch.eye(weight.shape[1], dtype=torch.float64), None
    else:
        root, row_weights = root_of(statistics.second_moment, config.damping), statistics.row_weights
    root = root / power_of_2(root.diagonal().mean().float())  # its scale is that of what is stored, and nothing else
    lengths = (weight.double() @ root).norm(dim=1)  # [out]
    unit = weight.double() / torch.where(lengths > 0, lengths, 1).unsqueeze(-1)
    left, right = whitened_factors(unit, config.rank, root, row_weights)
    return stored(left, right, config.codec, row_scale=best_scales(weight, left, right, root))


def best_scales(weight: Tensor, left: Tensor, right: Tensor, root: Tensor) -> Tensor:
    """Return per row the scale s [out] for which ||(w - s left @ right) root|| is least, fp32."""
    seen, found = weight.double() @ root, left.double() @ (right.double() @ root)  # [out, in]
    squares = found.square().sum(1)
    return torch.where(squares > 0, (seen * found).sum(1) / squares, 0).float()


def stored(left: Tensor, right: Tensor, codec: str, **vectors: Tensor) -> LowRank:
    """Return the factors stored by `codec`, and row_scale or column_offset too, but in at least 16 bits.

    A low-bit codec has one scale for a whole vector; 16 bits of it cost little. They are bf16 beyond fp16's range.
    """
    main = codec_named(codec)
    coded = {"left": Coded.encode(main, left), "right": Coded.encode(main, right)}
    for name, vector in vectors.items():
        fine: Codec = main if main.is_float else codec_named("fp16")
        is_large = fine.name == "fp16" and float(vector.abs().max()) > torch.finfo(torch.float16).max
        coded[name] = Coded.encode(codec_named("bf16") if is_large else fine, vector)
    options = {"rank": left.shape[1]} | {name: name in vectors for name in ("row_scale", "column_offset")}
    return LowRank((left.shape[0], right.shape[1]), coded, options)
