"""`tt_matrix`: one tensor train for the whole matrix (TT-matrix, matrix product operator).

References: Oseledets, "Tensor-Train Decomposition", SIAM J. Sci. Comput. 33 (2011), whose algorithm 2 is the rounding;
Novikov et al., "Tensorizing Neural Networks", arXiv 1509.06569; in GPT-2: arXiv 2306.02697.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from math import prod
from typing import Any, NamedTuple

import opt_einsum
import torch
import torch.nn.functional as F
from torch import Tensor

from compressor.codecs import Coded, PartLayout, codec_named
from compressor.formats.base import FindProduct, Format, Layout, Path, Shape, Span, check_ids

BATCH_ROWS = 256  # rows of x contracted at a time, which bounds the intermediate products
Modes = tuple[int, ...]


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
        path: Path = "factors",
    ) -> "TTMatrix":
        """Store cores [r_{k-1}, in_k, out_k, r_k] by `codec`.

        Args:
            cores: G_1 .. G_N.
            shape: (out, in), at most the products of the modes.
            codec: of every core.
            permutation: the train's row for every row of W [out], a permutation; None if they are the same.
            path: how it is multiplied.
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
        return cls(shape, coded, options, path, indices=_indices(permutation))

    def __init__(
        self, shape: Shape, coded: Mapping[str, Coded], options: Mapping[str, Any], path: Path, **nested: Any
    ) -> None:
        super().__init__(shape, coded, options, path, **nested)
        self.in_modes, self.out_modes, self.ranks = (tuple(options[k]) for k in ("in_modes", "out_modes", "ranks"))
        self._products: dict[Span, Tensor] = {}
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

    def matmul(self, x: Tensor) -> Tensor:
        """Return x @ dense().T [..., out].

        The cores are contracted with x and W is never formed, unless the path is "dense".
        """
        if self.path == "dense":
            return x @ self.dense().to(x.dtype).T
        flat = F.pad(x.reshape(-1, self.in_features), (0, prod(self.in_modes) - self.in_features))
        cores = self.cores(x.dtype)
        known = self._products if x.dtype == torch.float32 else {}
        y = torch.cat([self._product(block, cores, known) for block in flat.split(BATCH_ROWS)])  # [B, prod out_k]
        permutation = self._permutation()
        y = y[:, : self.out_features] if permutation is None else y[:, permutation]
        return y.reshape(*x.shape[:-1], self.out_features)

    def product_shapes(self, rows: int) -> dict[Span, tuple[int, ...]]:
        """Return the shapes of the products of neighbouring cores that make `matmul` cheap, by their span.

        They do not depend on x, so that once made they serve every call. None has more than half
        as many values as W.

        Args:
            rows: of x, at most.
        """
        shapes = {span: self._merged_shape(*span) for span in _spans(len(self.in_modes)) if span[1] - span[0] > 1}
        small = frozenset(span for span, shape in shapes.items() if 2 * prod(shape) <= prod(self.shape))
        classes = [1 << k for k in range((min(rows, BATCH_ROWS) - 1).bit_length() + 1)]
        plans = [_plan(self.in_modes, self.out_modes, self.ranks, size, small) for size in classes]
        return {span: shapes[span] for plan in plans if (span := (plan.start, plan.stop)) in small}

    def product(self, span: Span) -> Tensor:
        """Return the product of the cores start .. stop - 1 in fp32, the boundary ranks left out."""
        modes = self.in_modes, self.out_modes, self.ranks
        merge = _plan_through(*modes, 1, *span).merge
        if merge is None:
            raise ValueError(f"span must hold at least two cores, not {list(span)}")
        return merge(*_without_ends(self.cores())[slice(*span)])

    def with_products(self, rows: int, find: FindProduct) -> "TTMatrix":
        """Return the same matrix, which multiplies by products of cores where that is cheaper.

        It rounds otherwise than the matrix without them does.

        Raises:
            ValueError: if `find` gives what is no product of these cores.
        """
        copy = self.with_path(self.path)
        for span, shape in self.product_shapes(rows).items():
            found = find(span, shape, partial(self.product, span))
            if tuple(found.shape) != shape or found.dtype != torch.float32:
                raise ValueError(f"product {list(span)} must be fp32 {list(shape)}, not {list(found.shape)}")
            copy._products[span] = found
        return copy

    def merged(self) -> "TTMatrix":
        """Return the same matrix, in which a given product of cores is one core; itself if it has none."""
        if not self._products:
            return self
        (start, stop), product = next(iter(self._products.items()))  # of those for one row of x, if there is one
        modes = range(start, stop)
        sizes = [(self.in_modes[k], self.out_modes[k]) for k in modes]
        ins, outs = (prod(side[start:stop]) for side in (self.in_modes, self.out_modes))
        left, right = self.ranks[start], self.ranks[stop]
        axes = product.reshape(left, right, *(n for size in sizes for n in size))
        order = [0, *range(2, 2 + 2 * len(modes), 2), *range(3, 2 + 2 * len(modes), 2), 1]
        core = axes.permute(order).reshape(left, ins, outs, right)
        cores = self.cores()
        return TTMatrix.of(
            [*cores[:start], core, *cores[stop:]], self.shape, "fp32", permutation=self._permutation(), path=self.path
        )

    def _merged_shape(self, start: int, stop: int) -> tuple[int, ...]:
        order = len(self.in_modes)
        bonds = [self.ranks[start]] * (start > 0) + [self.ranks[stop]] * (stop < order)
        return *bonds, *(side[k] for k in range(start, stop) for side in (self.in_modes, self.out_modes))

    def dense(self) -> Tensor:
        return self.rows(torch.arange(self.out_features))

    def multiply_adds(self, batch: int) -> int:
        """Return how many multiply-adds `matmul` spends on `batch` rows of x; dense() would take batch * out * in."""
        return _plan(self.in_modes, self.out_modes, self.ranks, batch).multiply_adds

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
        return TTMatrix(self.shape, coded, options, self.path, indices=self.indices())

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

    def _product(self, x: Tensor, cores: list[Tensor], known: Mapping[Span, Tensor]) -> Tensor:
        """Return x [B, prod in_k] times the train [B, prod out_k]; `known` products of cores need not be made."""
        batch = x.shape[0]
        size_class = 1 << max(0, batch - 1).bit_length()
        plan = _plan(self.in_modes, self.out_modes, self.ranks, size_class, frozenset(known))
        product = known.get((plan.start, plan.stop))
        return plan(x.reshape(batch, *self.in_modes), _without_ends(cores), product).reshape(batch, -1)


class _Contraction(NamedTuple):
    """One contraction of several tensors."""

    multiply_adds: int
    expression: Callable[..., Tensor]

    def __call__(self, *operands: Tensor) -> Tensor:
        return self.expression(*operands)


class _Plan(NamedTuple):
    """The cheapest order of contracting x with the cores that never multiplies all cores together first.

    Cores start .. stop - 1 are merged, x is contracted with the result, then with all that is left.
    """

    multiply_adds: int
    start: int
    stop: int
    merge: _Contraction | None
    absorb: _Contraction
    finish: _Contraction | None

    def __call__(self, x: Tensor, cores: list[Tensor], merged: Tensor | None = None) -> Tensor:
        """Return x [B, in_1 .. in_N] times the cores; `merged` is the product of the middle ones, if it is known."""
        if merged is None:
            merged = self.merge(*cores[self.start : self.stop]) if self.merge else cores[self.start]
        y = self.absorb(x, merged)
        return self.finish(y, *cores[: self.start], *cores[self.stop :]) if self.finish else y


@lru_cache(maxsize=512)
def _plan(in_modes: Modes, out_modes: Modes, ranks: Modes, batch: int, known: frozenset[Span] = frozenset()) -> _Plan:
    """Return the plan for one class of batch sizes; the products of the spans in `known` cost nothing."""
    plans = [_plan_through(in_modes, out_modes, ranks, batch, *span) for span in _spans(len(in_modes))]

    def cost(plan: _Plan) -> tuple[int, int, int]:
        free = plan.merge.multiply_adds if plan.merge and (plan.start, plan.stop) in known else 0
        return plan.multiply_adds - free, plan.start, plan.stop

    return min(plans, key=cost)


def _spans(order: int) -> list[Span]:
    """Return the spans of cores that may be multiplied first: never all of several."""
    return [(a, b) for a in range(order) for b in range(a + 1, order + 1) if b - a < max(order, 2)]


def _plan_through(in_modes: Modes, out_modes: Modes, ranks: Modes, batch: int, start: int, stop: int) -> _Plan:
    """Return the cheapest plan that merges cores start .. stop - 1."""
    order = len(in_modes)
    sizes = {f"i{k}": n for k, n in enumerate(in_modes)} | {f"o{k}": n for k, n in enumerate(out_modes)}
    sizes |= {f"r{k}": n for k, n in enumerate(ranks)} | {"b": batch}
    cores = [[f"r{k}"] * (k > 0) + [f"i{k}", f"o{k}"] + [f"r{k + 1}"] * (k < order - 1) for k in range(order)]
    bonds = [f"r{start}"] * (start > 0) + [f"r{stop}"] * (stop < order)
    span = range(start, stop)
    merged = bonds + [f"{side}{k}" for k in span for side in "io"]
    mixed = ["b", *bonds, *(f"{'o' if k in span else 'i'}{k}" for k in range(order))]
    result = ["b", *(f"o{k}" for k in range(order))]
    rest = [*cores[:start], *cores[stop:]]
    merge = _contraction(cores[start:stop], merged, sizes) if stop - start > 1 else None
    first = merged if merge else cores[start]
    absorb = _contraction([["b", *(f"i{k}" for k in range(order))], first], mixed if rest else result, sizes)
    finish = _contraction([mixed, *rest], result, sizes) if rest else None
    steps = [step for step in (merge, absorb, finish) if step]
    cost = sum(step.multiply_adds for step in steps)
    return _Plan(cost, start, stop, merge, absorb, finish)


def _contraction(inputs: list[list[str]], output: list[str], sizes: Mapping[str, int]) -> _Contraction:
    """Return the contraction of tensors with named axes, in opt_einsum's best order of pairs."""
    symbols = {name: opt_einsum.get_symbol(k) for k, name in enumerate(sizes)}
    terms = ["".join(symbols[name] for name in axes) for axes in inputs]
    equation = f"{','.join(terms)}->{''.join(symbols[name] for name in output)}"
    shapes = [tuple(sizes[name] for name in axes) for axes in inputs]
    path, info = opt_einsum.contract_path(equation, *shapes, shapes=True, optimize="dp")
    return _Contraction(int(info.opt_cost) // 2, opt_einsum.contract_expression(equation, *shapes, optimize=path))


def _without_ends(cores: list[Tensor]) -> list[Tensor]:
    """Drop the two boundary ranks, which are 1."""
    inner = [cores[0].squeeze(0), *cores[1:]]
    return [*inner[:-1], inner[-1].squeeze(-1)]


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
