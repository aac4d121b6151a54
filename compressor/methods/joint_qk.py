"""`joint_qk`: queries and keys of every head cut together, so that their products stay.

Attention uses a query q = Wq x only in products q . k with keys k = Wk y. Per head, the matrix of rank r nearest to
Wq^T Wk, for the inputs x and y that occur, is Wq^T P Wk with an oblique projector P [D / H, D / H] of rank r; and
since P P = P, it is also (P^T Wq)^T (P Wk): both matrices get rank r, and their products are the best there are.
Cutting either by itself can do no better.

Biases stay as they are. That of the keys adds the same to all scores of a query, and softmax does not see it. That of
the queries, b, adds b . (Wk y), of which P keeps b . (P Wk y): the choice of P does not know b.

References: MoDeGPT (arXiv 2408.09632), which cuts pairs of matrices by module, and A3 (arXiv 2505.12942), which cuts
the scores of a head in closed form. There the heads become smaller; here they keep their dimension, and the rank is
in the factors.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.errors import check_range
from compressor.formats import Dense, Format, LowRank, Stacked
from compressor.methods.base import Statistics, WhitenedConfig
from compressor.methods.whitened_svd import balanced, root_of
from compressor.progress import Progress, silent


@dataclass(frozen=True, kw_only=True)
class Config(WhitenedConfig):
    """Options of `joint_qk`.

    Attributes:
        rank: of queries and keys per head, at most D / H.
        heads: their number H; by default the model's.
        damping: as in whitened_svd; used where statistics are given.
    """

    rank: int = 24
    heads: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heads is not None and self.heads < 1:
            raise ValueError(f"heads must be at least 1, not {self.heads}")

    def check(self, shape: tuple[int, int], heads: int) -> None:
        width = _width(shape)
        if self.heads not in (None, heads):
            raise ValueError(f"heads must be {heads} as in the model, not {self.heads}")
        if width % heads:
            raise ValueError(f"heads must divide D = {width}, not be {heads}")
        check_range("rank", self.rank, 1, width // heads)


def compress(
    weight: Tensor, config: Config, statistics: Statistics | None = None, progress: Progress = silent
) -> Stacked | Dense:
    """Return q, k and v of a fused matrix [3 D, D]: a low-rank block per head of q and of k, and v as it is.

    Where the factors would hold no fewer values than the heads, nothing is cut. It is multiplied densely, since many
    small products take longer than a large one (for one row, 15 x at D = 256 and H = 8, 5 x at D = 768 and H = 12).

    Raises:
        ValueError: if the matrix is not fused, the heads are unknown or do not divide D, or the rank is too large.
    """
    width = _width((weight.shape[0], weight.shape[1]))
    heads = _heads(config, statistics)
    config.check((3 * width, width), heads)
    size = width // heads  # D / H
    if config.rank * (size + width) >= size * width:
        return Dense.of(weight, config.codec)
    root = torch.eye(width).double() if statistics is None else root_of(statistics.second_moment, config.damping)
    q, k, v = weight.chunk(3)
    pairs = list(zip(q.split(size), k.split(size), strict=True))
    cut = [joint_factors(*pair, config.rank, root) for pair in progress(pairs, label="Heads", total=len(pairs))]
    blocks: list[Format] = [LowRank.of(*heads[side], config.codec) for side in (0, 1) for heads in cut]
    return Stacked.of([*blocks, Dense.of(v, config.codec)])


def joint_factors(query: Tensor, key: Tensor, rank: int, root: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
    """Return left [d, r] and right [r, D] of P^T query, and of P key, for one head's matrices [d, D]; fp32.

    With A = query root and B = key root, A^T B = X S Y^T is found from the triangles of A^T = Qa Ra and B^T = Qb Rb,
    as X S Y^T = Ra Rb^T. Then P = U V^T with U = Rb^T Y_r S_r^(-1/2) and V = Ra^T X_r S_r^(-1/2), V^T U = 1, keeps
    the r largest singular values: Ra P Rb^T = X_r S_r Y_r^T.
    """
    query, key = query.double(), key.double()
    a, b = (torch.linalg.qr((matrix @ root).T).R for matrix in (query, key))  # [d, d]
    x, s, y = torch.linalg.svd(a @ b.T)
    scale = torch.where(s > s[0] * torch.finfo(s.dtype).eps, s.rsqrt(), 0)[:rank]  # no score needs the others
    u, v = b.T @ y[:rank].T * scale, a.T @ x[:, :rank] * scale  # [d, r]
    return balanced(v, u.T @ query), balanced(u, v.T @ key)


def _width(shape: tuple[int, int]) -> int:
    if shape[0] != 3 * shape[1]:
        raise ValueError(f"target must be qkv for joint_qk: q, k and v fused, [3 D, D], not {list(shape)}")
    return shape[1]


def _heads(config: Config, statistics: Statistics | None) -> int:
    heads = (statistics.heads if statistics is not None else None) or config.heads
    if heads is None:
        raise ValueError("heads must be given: how many q, k and v each are made of")
    return heads
