"""`whitened_svd`: the best approximation of a given rank where it matters, by rows and by inputs.

The error that counts is that of the products: sum over rows v of w_v E (delta_v . x)^2, which is
||diag(w)^(1/2) Delta L||^2 in the Frobenius norm with L L^T = E x x^T.

Reference: SVD-LLM (arXiv 2403.07378, section 3.1) whitens by the inputs; the weights of the rows follow
Hsu et al., "Language model compression with weighted low-rank factorization" (arXiv 2207.00112).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.errors import check_range
from compressor.formats import LowRank
from compressor.methods.base import Statistics, WhitenedConfig, needed
from compressor.progress import Progress, silent


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

    Raises:
        ValueError: if that is not positive definite.
    """
    moment = second_moment.double()
    mean = moment.diagonal().mean()
    root: Tensor
    root, failed = torch.linalg.cholesky_ex(moment + damping * mean * torch.eye(len(moment), dtype=moment.dtype))
    if failed or not root.diagonal().min() > 0:
        raise ValueError(f"damping must be larger than {damping}: the inputs do not span all {len(moment)} directions")
    return root


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

    That is kind to low-bit codecs and to fp16's range.
    """
    sizes = left.norm(dim=0), right.norm(dim=1)  # [r]
    scale = torch.where((sizes[0] > 0) & (sizes[1] > 0), (sizes[1] / sizes[0]).sqrt(), 1)
    return (left * scale).float(), (right / scale.unsqueeze(-1)).float()
