"""One row per format and per method; the contract suites run over all of them."""

from collections.abc import Callable

import torch
from torch import Tensor

from compressor.formats import Dense, Format, LowRank, TokenMPS
from compressor.methods import Config, quantize, svd, tensorgpt
from compressor.shapes import train_size


def _normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def _mps(rows: int, width: int, modes: list[int], ranks: list[int]) -> TokenMPS:
    cores = _normal(rows, train_size(modes, ranks))
    return TokenMPS.of(cores, in_features=width, modes=modes, ranks=ranks, codec="fp32", path="stored")


# Every format in fp32; the suite stores each by every codec.
FORMAT_CASES: dict[str, Callable[[], Format]] = {
    "dense": lambda: Dense.of(_normal(33, 20), "fp32"),
    "dense-whole-vectors": lambda: Dense.of(_normal(33, 64), "fp32"),
    "dense-one-row": lambda: Dense.of(_normal(1, 5), "fp32"),
    "low_rank": lambda: LowRank.of(_normal(33, 7), _normal(7, 20), "fp32"),
    "low_rank-whole-vectors": lambda: LowRank.of(_normal(50, 32), _normal(32, 64), "fp32"),
    "low_rank-scaled": lambda: LowRank.of(_normal(33, 3), _normal(3, 20), "fp32", row_scale=_normal(33)),
    "low_rank-scaled-offset": lambda: LowRank.of(
        _normal(33, 3), _normal(3, 20), "fp32", row_scale=_normal(33), column_offset=_normal(20)
    ),
    "token_mps": lambda: _mps(33, 16, [2, 2, 2, 2], [1, 2, 3, 2, 1]),
    "token_mps-padded": lambda: _mps(33, 20, [2, 2, 2, 2, 2], [1, 1, 2, 2, 2, 1]),
    "token_mps-one-core": lambda: _mps(33, 7, [7], [1, 1]),
    "token_mps-many-rows": lambda: _mps(5000, 6, [2, 3], [1, 2, 1]),
}

# Every method: (compress, config of rank r on a matrix, ranks from poor to exact).
METHOD_CASES: dict[str, tuple[Callable[..., Format], Callable[[int], Config], list[int]]] = {
    "tensorgpt-padded": (tensorgpt.compress, lambda r: tensorgpt.Config(rank=r, codec="fp32"), [1, 2, 3, 4, 8]),
    "tensorgpt-unpadded": (
        tensorgpt.compress,
        lambda r: tensorgpt.Config(rank=r, padded=False, codec="fp32"),
        [1, 2, 3, 4, 8],
    ),
    "svd": (svd.compress, lambda r: svd.Config(rank=r, codec="fp32"), [1, 2, 5, 10, 24]),
    "quantize": (quantize.compress, lambda _: quantize.Config(codec="fp32"), [1]),
}
