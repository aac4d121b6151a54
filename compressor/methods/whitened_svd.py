"""`whitened_svd`: the best approximation of a given rank where it matters, by rows and by inputs.

The error that counts is that of the products: sum over rows v of w_v E (delta_v . x)^2, which is
||diag(w)^(1/2) Delta L||^2 in the Frobenius norm with L L^T = E x x^T.

Reference: SVD-LLM (arXiv 2403.07378, section 3.1) whitens by the inputs; the weights of the rows follow
Hsu et al., "Language model compression with weighted low-rank factorization" (arXiv 2207.00112).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.errors import check_range
from compressor.formats import LowRank
from compressor.methods.base import Statistics, WhitenedConfig, needed
from compressor.progress import Progress, silent

RAISED = (1e-8, 1e-6, 1e-4, 1e-2, 1.0)  # dampings that are tried where a smaller one will not do


@dataclass(frozen=True, kw_only=True)
class Config(WhitenedConfig):
    """Options of `whitened_svd`.

    Attributes:
        rank: how many singular values are kept.
        damping: added to the second moment's diagonal, as a share of its mean.
    """


def compress(
    weight: Tensor, config: Config, statistics: Statistics | None = None, progress: Progress = silent
) -> LowRank:
    """Return the factors of `weight` [out, in] whose weighted error is least.

    Raises:
        ValueError: if there are no statistics, or the rank is too large.
    """
    statistics = needed(statistics, "whitened_svd")
    check_range("rank", config.rank, 1, min(weight.shape))
    root = root_of(statistics.second_moment, config.damping)
    left, right = whitened_factors(weight, config.rank, root, statistics.row_weights)
    return LowRank.of(left, right, config.codec)


def root_of(second_moment: Tensor, damping: float) -> Tensor:
    """Return the lower triangular L [in, in] with L L^T = second_moment + damping * its mean diagonal, fp64.

    Where that is not positive definite, since the inputs do not span all directions, the damping is raised until it
    is. Where there are no inputs but zeros, they say nothing, and L is the identity.
    """
    return next(roots_of(second_moment, damping))


def roots_of(second_moment: Tensor, damping: float) -> Iterator[Tensor]:
    """Yield the L of `root_of` for `damping` and for larger ones, and in the end the identity."""
    moment = second_moment.double()
    identity = torch.eye(len(moment), dtype=moment.dtype)
    mean = moment.diagonal().mean()
    for share in (damping, *(share for share in RAISED if share > damping)):
        root, failed = torch.linalg.cholesky_ex(moment + share * mean * identity)
        if not failed and root.diagonal().min() > 0:
            yield root
    yield identity


def whitened_factors(weight: Tensor, rank: int, root: Tensor, row_weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return left [out, r] and right [r, in], fp32, whose product is nearest to `weight`.

    With A = diag(w)^(1/2) W L = U S V^T, the rows of W are projected to W L V_r V_r^T L^-1; so no row is
    divided by its weight, which may be 0.
    """
    seen = weight.double() @ root  # [out, in]
    weighted = seen if row_weights is None else seen * row_weights.double().unsqueeze(-1)
    basis = torch.linalg.eigh(seen.T @ weighted).eigenvectors[:, -rank:].flip(1)  # V_r [in, r], largest first
    left = seen @ basis  # [out, r]
    right = torch.linalg.solve_triangular(root, basis.T, upper=False, left=False)  # V_r^T L^-1 [r, in]
    return balanced(left, right)


def balanced(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Scale every component of left [out, r] @ right [r, in] to the same norm on both sides, in fp32.

    That is kind to low-bit codecs and to fp16's range. A component that is zero on either side is so on both.
    """
    sizes = left.norm(dim=0), right.norm(dim=1)  # [r]
    used = (sizes[0] > 0) & (sizes[1] > 0)
    scale = torch.where(used, (sizes[1] / sizes[0]).sqrt(), 0)
    return (left * scale).float(), torch.where(used.unsqueeze(-1), right / scale.unsqueeze(-1), 0).float()
