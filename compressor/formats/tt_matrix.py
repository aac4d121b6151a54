"""`tt_matrix`: one tensor train for the whole matrix (TT-matrix, matrix product operator).

References: Oseledets, "Tensor-Train Decomposition", SIAM J. Sci. Comput. 33 (2011), whose algorithm 2 is the rounding;
Novikov et al., "Tensorizing Neural Networks", arXiv 1509.06569; in GPT-2: arXiv 2306.02697.
"""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from compressor.codecs import Coded, PartLayout, codec_named
from compressor.formats.base import Format, Layout, Shape, check_ids


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
        return cls(shape, coded, options, indices=_indices(permutation))

    def __init__(self, shape: Shape, coded: Mapping[str, Coded], options: Mapping[str, Any], **nested: Any) -> None:
        super().__init__(shape, coded, options, **nested)
        self.in_modes, self.out_modes, self.ranks = (tuple(options[k]) for k in ("in_modes", "out_modes", "ranks"))
        permutation = self._permutation()
        if permutation is not None and not torch.equal(permutation.sort().values, torch.arange(shape[0])):
            raise ValueError(f"permutation must be a permutation of 0 .. {shape[0] - 1}")

    @classmethod
    def layout(cls, shape: Shape, options: Mapping[str, Any]) -> Layout:
        if options.keys() != {"in_modes", "out_modes", "ranks", "permuted"}:
            legal = "in_modes, out_modes, ranks and permuted"
            raise ValueError(f"tt_matrix has the options {legal}, not {sorted(options)}")
        in_modes, out_modes, ranks = (options[name] for name in ("in_modes", "out_modes", "ranks"))
        for name, sizes in (("in_modes", in_modes), ("out_modes", out_modes), ("ranks", ranks)):
            if not isinstance(sizes, list) or not sizes or any(type(n) is not int or n < 1 for n in sizes):
                raise ValueError(f"{name} must be a list of positive integers, not {sizes!r}")
        if type(options["permuted"]) is not bool:
            raise ValueError(f"permuted must be true or false, not {options['permuted']!r}")
        for name, sizes, size in (("out_modes", out_modes, shape[0]), ("in_modes", in_modes, shape[1])):
            if len(sizes) != len(in_modes) or prod(sizes) < size:
                raise ValueError(f"{name} must be {len(in_modes)} and multiply to at least {size}, not {sizes}")
        _check_ranks(ranks, [i * o for i, o in zip(in_modes, out_modes, strict=True)])
        left, right = ranks[:-1], ranks[1:]
        cores = zip(left, in_modes, out_modes, right, strict=True)
        return {f"core_{k}": (r * i, o * s) for k, (r, i, o, s) in enumerate(cores)}

    @classmethod
    def index_layout(cls, shape: Shape, options: Mapping[str, Any]) -> dict[str, PartLayout]:
        return {"permutation": PartLayout((shape[0],), _index_dtype(shape[0]))} if options["permuted"] else {}

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


def _check_ranks(ranks: Sequence[int], modes: Sequence[int]) -> None:
    if len(ranks) != len(modes) + 1 or ranks[0] != 1 or ranks[-1] != 1:
        raise ValueError(f"ranks must be {len(modes) + 1} integers beginning and ending with 1, not {list(ranks)}")
    for k, rank in enumerate(ranks):
        if rank > (most := max(prod(modes[:k]), prod(modes[k:]))):
            raise ValueError(f"ranks must not exceed what both sides have, {most} at {k}, not {list(ranks)}")


def _indices(permutation: Tensor | None) -> dict[str, Tensor]:
    return {} if permutation is None else {"permutation": permutation.to(_index_dtype(permutation.numel()))}


def _index_dtype(count: int) -> torch.dtype:
    return torch.uint16 if count <= 1 << 16 else torch.int32
