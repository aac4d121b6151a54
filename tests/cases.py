"""One row per format and per method; the contract suites run over all of them."""

from collections.abc import Callable
from functools import cache, wraps

import torch
from torch import Tensor

from compressor.artifact.shapes import core_shapes, train_size
from compressor.formats import Dense, Format, LowRank, Residual, Sparse, Stacked, TokenMPS, TTMatrix
from compressor.methods import (
    Config,
    direction_ae,
    direction_svd,
    gptq,
    joint_qk,
    lpa,
    quantize,
    residual,
    rotated_svd,
    sparse_low_rank,
    svd,
    tensorgpt,
    ttm,
    whitened_svd,
)
from compressor.methods.base import Statistics


def _normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def _mps(rows: int, width: int, modes: list[int], ranks: list[int]) -> TokenMPS:
    cores = _normal(rows, train_size(modes, ranks))
    return TokenMPS.of(cores, in_features=width, modes=modes, ranks=ranks, codec="fp32")


def _ttm(
    shape: tuple[int, int], out_modes: list[int], in_modes: list[int], ranks: list[int], *, permuted: bool = False
) -> TTMatrix:
    sizes = zip(in_modes, out_modes, core_shapes(out_modes, ranks), strict=True)
    cores = [_normal(left, i, o, right) / (left * i) ** 0.5 for i, o, (left, _, right) in sizes]
    permutation = torch.randperm(shape[0], generator=torch.Generator().manual_seed(0)) if permuted else None
    return TTMatrix.of(cores, shape, "fp32", permutation=permutation)


def _sparse(rows: int, width: int, kept: int) -> Sparse:
    columns = _normal(rows, width).topk(kept, dim=1).indices
    return Sparse.of(_normal(rows, kept), columns, width, "fp32")


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
    "tt_matrix": lambda: _ttm((30, 12), [5, 3, 2], [2, 2, 3], [1, 4, 3, 1]),
    "tt_matrix-padded": lambda: _ttm((33, 20), [3, 4, 3], [3, 3, 3], [1, 5, 4, 1]),
    "tt_matrix-permuted": lambda: _ttm((33, 20), [6, 6], [4, 5], [1, 7, 1], permuted=True),
    "tt_matrix-one-core": lambda: _ttm((33, 7), [33], [8], [1, 1]),
    "tt_matrix-many-cores": lambda: _ttm((60, 16), [2] * 6, [1, 2, 2, 2, 2, 1], [1, 2, 3, 4, 1, 2, 1]),
    "stacked": lambda: Stacked.of(
        [Dense.of(_normal(5, 20), "fp32"), LowRank.of(_normal(9, 3), _normal(3, 20), "fp32")]
    ),
    "stacked-many": lambda: Stacked.of([Dense.of(_normal(k, 7), "fp32") for k in range(1, 13)]),
    "sparse": lambda: _sparse(33, 20, 3),
    "sparse-full": lambda: _sparse(5, 20, 20),
    "sparse-many-columns": lambda: _sparse(4, 1 << 15, 2),
    "sparse-many-rows": lambda: _sparse(300, 64, 32),
    "residual": lambda: Residual.of(
        Dense.of(_normal(33, 20), "fp32"), LowRank.of(_normal(33, 2), _normal(2, 20), "fp32")
    ),
    "residual-sparse": lambda: Residual.of(LowRank.of(_normal(33, 2), _normal(2, 20), "fp32"), _sparse(33, 20, 2)),
    "residual-of-stacked": lambda: Residual.of(
        Stacked.of([Dense.of(_normal(10, 12), "fp32"), _ttm((20, 12), [5, 4], [3, 4], [1, 6, 1])]),
        _ttm((30, 12), [5, 6], [4, 3], [1, 2, 1]),
    ),
}

# What the runtime's suites store each of them by.
CODECS = ["fp32", "bf16", "fp16", "int8", "int4", "int3", "int2", "int4-g8-zp", "int3-g10", "int2-row-zp", "int4-row"]
CODECS += ["tr1", "tr2-h", "tr3", "tr4-h", "int3-g10-h"]


@cache
def format_case(name: str, codec: str) -> Format:
    """Return a row of FORMAT_CASES, stored by a codec; it is made once, as formats are never changed."""
    return FORMAT_CASES[name]().recoded(codec)


def statistics(rows: int, width: int) -> Statistics:
    """Return statistics of correlated inputs and unequal rows."""
    inputs = _normal(4 * width, width) @ _normal(width, width)
    weights = _normal(rows).square() + 0.1
    return Statistics(second_moment=inputs.T @ inputs / len(inputs), row_weights=weights / weights.mean())


def _calibrated(compress: Callable[..., Format], *, white: bool = False) -> Callable[..., Format]:
    """Return `compress` with statistics; white inputs make its projections orthogonal."""

    @wraps(compress)
    def with_statistics(weight: Tensor, config: Config) -> Format:
        given = statistics(*weight.shape)
        if white:
            given = Statistics(second_moment=torch.eye(weight.shape[1]), row_weights=given.row_weights)
        return compress(weight, config, given)

    return with_statistics


# The shape of the matrix that a method's laws are tried on, where it takes no other.
METHOD_SHAPES = {"joint_qk": (72, 24)}

# Every method: (compress, config of rank r on a matrix, ranks from poor to exact).
METHOD_CASES: dict[str, tuple[Callable[..., Format], Callable[[int], Config], list[int]]] = {
    "tensorgpt-padded": (tensorgpt.compress, lambda r: tensorgpt.Config(rank=r, codec="fp32"), [1, 2, 3, 4, 8]),
    "tensorgpt-unpadded": (
        tensorgpt.compress,
        lambda r: tensorgpt.Config(rank=r, padded=False, codec="fp32"),
        [1, 2, 3, 4, 8],
    ),
    "ttm": (ttm.compress, lambda r: ttm.Config(rank=r, permute=False, codec="fp32"), [1, 2, 5, 10, 20]),
    "ttm-permuted-two-cores": (ttm.compress, lambda r: ttm.Config(rank=r, order=2, codec="fp32"), [1, 2, 5, 10, 24]),
    "ttm-published": (
        ttm.compress,
        lambda r: ttm.Config(rank=r, modes="published", permute=False, codec="fp32"),
        [100, 1000],
    ),
    "svd": (svd.compress, lambda r: svd.Config(rank=r, codec="fp32"), [1, 2, 5, 10, 24]),
    "quantize": (quantize.compress, lambda _: quantize.Config(codec="fp32"), [1]),
    "whitened_svd": (
        _calibrated(whitened_svd.compress, white=True),
        lambda r: whitened_svd.Config(rank=r, codec="fp32"),
        [1, 2, 5, 10, 24],
    ),
    "direction_svd": (direction_svd.compress, lambda r: direction_svd.Config(rank=r, codec="fp32"), [1, 2, 5, 10, 24]),
    "lpa": (lpa.compress, lambda r: lpa.Config(rank=r, codec="fp32"), [1, 2, 5, 10, 24]),
    "joint_qk": (joint_qk.compress, lambda r: joint_qk.Config(rank=r, heads=4, codec="fp32"), [2, 6]),
    "sparse_low_rank": (
        sparse_low_rank.compress,
        lambda r: sparse_low_rank.Config(rank=r, codec="fp32", kept_codec="fp32"),
        [1, 2, 5, 10, 24],
    ),
    "sparse_low_rank-by-kept": (
        sparse_low_rank.compress,
        lambda kept: sparse_low_rank.Config(rank=2, kept=kept, codec="fp32", kept_codec="fp32"),
        [1, 2, 5, 10, 24],
    ),
}

# Methods that are never exact, since they round or learn: (compress, config).
INEXACT_CASES: dict[str, tuple[Callable[..., Format], Config]] = {
    "direction_ae": (direction_ae.compress, direction_ae.Config(rank=4, epochs=2, codec="fp32")),
    "gptq": (_calibrated(gptq.compress), gptq.Config(codec="int4-g8")),
    "gptq-int8": (_calibrated(gptq.compress), gptq.Config(codec="int8")),
    "rotated_svd": (_calibrated(rotated_svd.compress), rotated_svd.Config(rank=12, right_codec="int8")),
    "residual": (_calibrated(residual.compress), residual.Config(rank=4, codec="int4-g8")),
    "gptq-act-order": (_calibrated(gptq.compress), gptq.Config(codec="int3", act_order=True)),
}
