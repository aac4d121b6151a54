"""`ttm`: one tensor train for the whole matrix, found by TT-SVD.

References: the layer, arXiv 2306.02697; TT-SVD, Oseledets, "Tensor-Train Decomposition", SIAM J. Sci. Comput. 33
(2011), algorithm 1 and theorem 2.2.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from compressor.artifact.shapes import balanced_modes, tt_ranks, ttm_modes
from compressor.errors import check_range
from compressor.formats import TTMatrix
from compressor.methods.base import RankConfig, Statistics
from compressor.progress import Progress, silent

MODES = ("balanced", "published")
POWER_STEPS = 8  # of the bisection's leading direction, whose sign is all that matters
SMALLEST_SHARE = 1e-3  # of the mean: no digit of a row or column counts less in the weighted error


@dataclass(frozen=True, kw_only=True)
class Config(RankConfig):
    """Options of `ttm`.

    Attributes:
        rank: cap of the inner ranks.
        modes: balanced (nearly equal, padded if need be) or published (prime factors, merged until they reach rank).
        order: number of cores of balanced modes.
        permute: put similar rows next to each other first; costs 2 bytes a row, 4 above 65536 rows.
    """

    modes: str = "balanced"
    order: int = 3
    permute: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.modes not in MODES:
            raise ValueError(f"modes must be one of {', '.join(MODES)}, not {self.modes!r}")
        check_range("order", self.order, 1, 12)

    def check(self, shape: tuple[int, int], heads: int) -> None:
        pass  # the rank is a cap


def compress(
    weight: Tensor, config: Config, statistics: Statistics | None = None, progress: Progress = silent
) -> TTMatrix:
    """Return the TT-SVD of `weight` [out, in].

    With statistics, the error that is kept small is that of diag(u) W diag(v), u and v being the products over the
    modes that are nearest to the root of the row weights and to the root mean square of the inputs. Such products
    divide out of the cores exactly.
    """
    out_features, in_features = weight.shape
    in_modes, out_modes = _modes(config, in_features, out_features)
    permutation = locality_order(weight, out_modes) if config.permute else None
    rows = weight.double() if permutation is None else weight.double()[permutation.argsort()]
    row_scales = [torch.ones(mode, dtype=torch.float64) for mode in out_modes]
    column_scales = [torch.ones(mode, dtype=torch.float64) for mode in in_modes]
    if statistics is not None:
        column_scales = separable_scales(statistics.second_moment.diagonal(), in_modes)
        if statistics.row_weights is not None:
            weights = statistics.row_weights
            row_scales = separable_scales(weights if permutation is None else weights[permutation.argsort()], out_modes)
    padded = F.pad(rows, (0, prod(in_modes) - in_features, 0, prod(out_modes) - out_features))
    scaled = _outer(row_scales)[:, None] * padded * _outer(column_scales)
    steps = progress(range(len(in_modes)), label="TT-SVD", total=len(in_modes))
    cores = tt_svd(scaled, in_modes, out_modes, config.rank, steps)
    per_core = zip(cores, column_scales, row_scales, strict=True)
    found = [(core / (i[:, None] * o)[:, :, None]).float() for core, i, o in per_core]
    return TTMatrix.of(found, (out_features, in_features), config.codec, permutation=permutation)


def tt_svd(
    matrix: Tensor, in_modes: Sequence[int], out_modes: Sequence[int], rank: int, steps: Iterable[int] | None = None
) -> list[Tensor]:
    """Return the cores [r_{k-1}, in_k, out_k, r_k] of `matrix` [prod out_k, prod in_k], fp64.

    Every step keeps the leading singular vectors of an unfolding, from the smaller of its two Gram matrices: exact to
    1e-8 of the norm, and seconds where an SVD of [50400, 768] takes minutes.

    Args:
        matrix: W, fp64.
        in_modes: in_1 .. in_N.
        out_modes: out_1 .. out_N.
        rank: cap of the inner ranks.
        steps: range(N), to be taken as the cores are found.
    """
    order = len(in_modes)
    modes = [i * o for i, o in zip(in_modes, out_modes, strict=True)]
    ranks = tt_ranks(modes, rank)
    axes = [axis for k in range(order) for axis in (order + k, k)]  # in_1, out_1, in_2, out_2, ...
    rest = matrix.reshape(*out_modes, *in_modes).permute(axes).reshape(1, -1)  # [r_0, in_1 out_1 ... in_N out_N]
    cores = []
    for k in steps or range(order):
        core = rest
        if k < order - 1:
            core, rest = _cut(rest.reshape(ranks[k] * modes[k], -1), ranks[k + 1])
        cores.append(core.reshape(ranks[k], in_modes[k], out_modes[k], ranks[k + 1]))
    return cores


def separable_scales(squares: Tensor, modes: Sequence[int]) -> list[Tensor]:
    """Return one positive vector per mode, whose outer product is near the root of `squares` [n], n <= prod(modes).

    The product of the marginal means is, among all products, the one nearest in Kullback-Leibler divergence.
    """
    squares = squares.double().clamp_min(0)
    mean = squares.mean().clamp_min(torch.finfo(torch.float32).tiny)
    padding = (mean / mean).expand(prod(modes) - squares.numel())
    grid = torch.cat([squares / mean, padding]).reshape(*modes)
    others = [[axis for axis in range(len(modes)) if axis != k] for k in range(len(modes))]
    marginals = [grid.mean(dim=axes) if axes else grid for axes in others]
    return [marginal.clamp_min(SMALLEST_SHARE).sqrt() for marginal in marginals]


def locality_order(rows: Tensor, out_modes: Sequence[int]) -> Tensor:
    """Return the place of every row [out] in an order that puts similar rows next to each other.

    The rows are bisected along their leading principal direction, again and again, at multiples of the modes' blocks,
    until a part fits in the last mode.
    """
    units = [prod(out_modes[k:]) for k in range(1, len(out_modes))]
    parts = [torch.arange(len(rows))]
    sorted_parts: list[Tensor] = []
    while parts:
        part = parts.pop()
        if len(part) <= out_modes[-1]:
            sorted_parts.append(part)
            continue
        unit = next((unit for unit in units if unit < len(part)), 1)
        cut = unit * max(1, len(part) // unit // 2)
        along = part[_leading_projection(rows[part].float()).argsort(stable=True)]
        parts += [along[cut:], along[:cut]]  # the first half is taken next
    return torch.cat(sorted_parts).argsort()


def _modes(config: Config, in_features: int, out_features: int) -> tuple[list[int], list[int]]:
    if config.modes == "published":
        return ttm_modes(in_features, out_features, config.rank)
    return balanced_modes(in_features, config.order), balanced_modes(out_features, config.order)


def _cut(unfolding: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return factors [m, r] and [r, n] of the best approximation of `unfolding` [m, n], the first orthonormal."""
    if unfolding.shape[0] <= unfolding.shape[1]:
        _, vectors = torch.linalg.eigh(unfolding @ unfolding.T)
        left = vectors[:, -rank:].flip(1)  # the largest eigenvalues come last
        return left, left.T @ unfolding
    _, vectors = torch.linalg.eigh(unfolding.T @ unfolding)
    right = vectors[:, -rank:].flip(1)  # [n, r]
    left = unfolding @ right  # U S
    norms = left.norm(dim=0)
    return left * torch.where(norms > 0, 1 / norms, 0), norms[:, None] * right.T


def _leading_projection(rows: Tensor) -> Tensor:
    """Return the rows' coordinates [M] along their first principal direction, by power iteration."""
    centred = rows - rows.mean(0)
    along = centred[centred.norm(dim=1).argmax()]
    for _ in range(POWER_STEPS):
        along = F.normalize((centred @ along) @ centred, dim=0)
    return centred @ along


def _outer(vectors: Sequence[Tensor]) -> Tensor:
    """Return the outer product of vectors [n_k], flattened to [prod n_k]."""
    product = vectors[0].new_ones(1)
    for vector in vectors:
        product = (product[:, None] * vector).flatten()
    return product
