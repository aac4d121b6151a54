"""`quantize`: round every number of a matrix to nearest; nothing is factorised."""

from dataclasses import dataclass

from torch import Tensor

from compressor.formats import Dense
from compressor.methods.base import CodecConfig, Statistics
from compressor.progress import Progress, silent


@dataclass(frozen=True, kw_only=True)
class Config(CodecConfig):
    """Options of `quantize`.

    Attributes:
        codec: int8 keeps one scale per row.
    """

    codec: str = "int8"


def compress(
    weight: Tensor, config: Config, statistics: Statistics | None = None, progress: Progress = silent
) -> Dense:
    """Return `weight` [out, in] itself, stored by the codec."""
    return Dense.of(weight, config.codec)
