"""`tt_matrix`: one tensor train for the whole matrix (TT-matrix, matrix product operator).

References: Oseledets, "Tensor-Train Decomposition", SIAM J. Sci. Comput. 33 (2011), whose algorithm 2 is the rounding;
Novikov et al., "Tensorizing Neural Networks", arXiv 1509.06569; in GPT-2: arXiv 2306.02697.
"""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from compressor.artifact.layouts import Shape, format_layout
from compressor.codecs import Coded, codec_named
from compressor.formats.base import Format, check_ids, index


class TTMatrix(Format):
    """W[(o_1 .. o_N), (i_1 .. i_N)] = prod_k G_k[:, i_k, o_k, :] with cores G_k [r_{k-1}, in_k, out_k, r_k].

    Core k is stored as the matrix [r_{k-1} in_k, out_k r_k], so that codecs see long rows, each of one row of the
    left rank: TT-SVD leaves the spread of the singular values there. Where the modes multiply to more than the shape,
    x is extended by zeros and the surplus rows are cropped. If `permuted`, row w of W is the train's row
    permutation[w].
    """

    kind = "tt_matrix"
    trains_in_bf16 = False

    @classmethod
    def of(
        cls,
        cores: Sequence[Tensor],
        shape: Shape,
        codec: str,
        *,
        permutation: Tensor | None = None,
    ) -> "TTMatrix":
        """Store cores [r_{k-1}, in_k, out_k, r_k] by `codec`.

        Args:
            cores: G_1 .. G_N.
            shape: (out, in), at most the products of the modes.
            codec: of every core.
            permutation: the train's row for every row of W [out], a permutation; None if they are the same.
        """
        if any(core.dim() != 4 for core in cores):
            raise ValueError(f"cores must have 4 dimensions, not {[core.dim() for core in cores]}")
        options = {
            "in_modes": [core.shape[1] for core in cores],
            "out_modes": [core.shape[2] for core in cores],
            "ranks": [*(core.shape[0] for core in cores), *(core.shape[3] for core in cores[-1:])],
            "permuted": permutation is not None,
        }
        matrices = [core.reshape(core.shape[0] * core.shape[1], -1) for core in cores]  # [r_{k-1} in_k, out_k r_k]
        coded = {f"core_{k}": Coded.encode(codec_named(codec), matrix) for k, matrix in enumerate(matrices)}
        if permutation is None:
            return cls(shape, coded, options)
        part = format_layout(cls.kind, shape, options, {}).indices["permutation"]
        return cls(shape, coded, options, indices={"permutation": index(permutation, part)})

    def __init__(self, shape: Shape, coded: Mapping[str, Coded], options: Mapping[str, Any], **nested: Any) -> None:
        super().__init__(shape, coded, options, **nested)
        self.in_modes, self.out_modes, self.ranks = (tuple(options[k]) for k in ("in_modes", "out_modes", "ranks"))
        permutation = self._permutation()
        if permutation is not None and not torch.equal(permutation.sort().values, torch.arange(shape[0])):
            raise ValueError(f"permutation must be a permutation of 0 .. {shape[0] - 1}")

    def core(self, k: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return core k [r_{k-1}, in_k, out_k, r_k], counted from 0."""
        matrix = self.coded()[f"core_{k}"].decode(dtype)
        return matrix.reshape(self.ranks[k], self.in_modes[k], self.out_modes[k], self.ranks[k + 1])

    def cores(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """Return all cores."""
        return [self.core(k, dtype) for k in range(len(self.in_modes))]

    def rows(self, ids: Tensor) -> Tensor:
        check_ids(ids, self.out_features)
        flat = ids.reshape(-1)
        permutation = self._permutation()
        places = flat if permutation is None else permutation[flat]
        distinct, back = places.unique(return_inverse=True)
        return self._contract(distinct)[back].reshape(*ids.shape, self.in_features)

    def dense(self) -> Tensor:
        return self.rows(torch.arange(self.out_features))

    def rounded(self, rank: int | None = None) -> "TTMatrix":
        """Return the same matrix with no rank above what its modes can use on either side.

        A right-to-left sweep of QR decompositions, then one of truncated SVDs from left to right, in fp64. Nothing is
        lost but by `rank`, if given, and by the cores' codecs, which stay. No rank grows.
        """
        if rank is not None and rank < 1:
            raise ValueError(f"rank must be at least 1, not {rank}")
        codecs = [coded.codec for coded in self.coded().values()]
        cores = _cut_left_to_right(_orthogonal_from_right([core.detach() for core in self.cores(torch.float64)]), rank)
        options = self.options | {"ranks": [1, *(core.shape[3] for core in cores)]}
        matrices = [core.reshape(core.shape[0] * core.shape[1], -1).float() for core in cores]
        pairs = enumerate(zip(codecs, matrices, strict=True))
        coded = {f"core_{k}": Coded.encode(codec, matrix) for k, (codec, matrix) in pairs}
        return TTMatrix(self.shape, coded, options, indices=self.indices())

    def _permutation(self) -> Tensor | None:
        index = self.indices().get("permutation")
        return None if index is None else index.to(torch.int64)

    def _contract(self, places: Tensor) -> Tensor:
        """Return the train's rows [M, in] at `places`, which ascend; rows of equal leading digits share the work."""
        width = 1
        train = self.core(0).new_ones(1, 1, 1)  # [prefixes, i_1 .. i_k, r_k]
        prefixes = places.new_zeros(1)
        tail = prod(self.out_modes)
        for core, mode in zip(self.cores(), self.out_modes, strict=True):
            tail //= mode
            parents, prefixes = prefixes, (places // tail).unique_consecutive()
            width *= core.shape[1]
            train = _extended(train, torch.searchsorted(parents, prefixes // mode), core, prefixes % mode)
        return train.reshape(-1, width)[:, : self.in_features]


def _extended(trains: Tensor, parents: Tensor, core: Tensor, digits: Tensor) -> Tensor:
    """Multiply trains[parents] [M, P, r] by the slices of a core [r, i, o, s] at the digits o [M]: [M, P i, s]."""
    places, products = [], []
    for digit in digits.unique().tolist():
        mine = (digits == digit).nonzero().squeeze(-1)
        train = trains[parents[mine]]
        slices = core[:, :, digit].to(train.dtype)  # which autocast lowers with the first product
        products.append(torch.tensordot(train, slices, dims=1))  # [mine, P, i, s]
        places.append(mine)
    if not places:
        return trains.new_zeros(0, trains.shape[1] * core.shape[1], core.shape[3])
    return torch.cat(products).flatten(1, 2)[torch.cat(places).argsort()]


def _orthogonal_from_right(cores: list[Tensor]) -> list[Tensor]:
    """Return the same train, every core but the first having orthonormal rows [r, i o s]."""
    done: list[Tensor] = []
    last = cores[-1]
    for core in reversed(cores[:-1]):
        q, r = torch.linalg.qr(last.flatten(1).T)  # [i o s, r'], [r', r]
        done.insert(0, q.T.reshape(-1, *last.shape[1:]))
        last = core @ r.T  # [r, i, o, r']
    return [last, *done]


def _cut_left_to_right(cores: list[Tensor], rank: int | None) -> list[Tensor]:
    """Return the train after SVDs of its unfoldings, which keep at most `rank` singular values."""
    done: list[Tensor] = []
    first = cores[0]
    for core in cores[1:]:
        u, s, vh = torch.linalg.svd(first.flatten(0, 2), full_matrices=False)  # [r i o, r'], [r'], [r', s]
        kept = len(s) if rank is None else min(rank, len(s))
        done.append(u[:, :kept].reshape(*first.shape[:3], kept))
        first = torch.tensordot(s[:kept, None] * vh[:kept], core, dims=1)  # [r', i, o, s]
    return [*done, first]
