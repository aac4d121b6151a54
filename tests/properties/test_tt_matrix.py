"""Theorems about TT-matrices, over random shapes."""

from math import prod

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorly import tt_matrix
from tensorly.decomposition import tensor_train_matrix

from compressor.artifact.shapes import balanced_modes, left_capped_ranks, prime_factors, tt_ranks, ttm_modes
from compressor.formats import TTMatrix
from compressor.methods.ttm import tt_svd
from tests.tolerances import EXACT, ROUNDING

# Mode pairs (in_k, out_k) and the padding that is cropped on either side.
modes = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=4).filter(
    lambda pairs: prod(i * o for i, o in pairs) <= 600
)
several = modes.filter(lambda pairs: len(pairs) > 1)
ranks = st.integers(1, 8)
seeds = st.integers(0, 2**31)


def _matrix(pairs: list[tuple[int, int]], seed: int) -> torch.Tensor:
    shape = prod(o for _, o in pairs), prod(i for i, _ in pairs)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _split(pairs: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
    return [i for i, _ in pairs], [o for _, o in pairs]


def _random(pairs: list[tuple[int, int]], rank: int, seed: int, crop: int = 0) -> TTMatrix:
    """Return random cores under the left cap only, so that the last ranks may be too large."""
    random = torch.Generator().manual_seed(seed)
    chain = left_capped_ranks([i * o for i, o in pairs], rank)
    sizes = zip(chain[:-1], pairs, chain[1:], strict=True)
    cores = [torch.randn(left, i, o, right, generator=random) / left**0.5 for left, (i, o), right in sizes]
    ins, outs = _split(pairs)
    return TTMatrix.of(cores, (max(1, prod(outs) - crop), max(1, prod(ins) - crop)), "fp32")


@given(modes, seeds)
@settings(max_examples=60)
def test_full_rank_reproduces_the_matrix(pairs: list[tuple[int, int]], seed: int) -> None:
    matrix = _matrix(pairs, seed)
    cores = tt_svd(matrix, *_split(pairs), rank=600)
    form = TTMatrix.of([core.float() for core in cores], tuple(matrix.shape), "fp32")  # type: ignore[arg-type]
    assert (form.dense() - matrix).norm() <= EXACT * matrix.norm()


@given(several, ranks, seeds)
@settings(max_examples=60)
def test_the_error_of_tt_svd_is_bounded_by_the_discarded_singular_values(
    pairs: list[tuple[int, int]], rank: int, seed: int
) -> None:
    matrix = _matrix(pairs, seed)
    ins, outs = _split(pairs)
    cores = tt_svd(matrix, ins, outs, rank)
    form = TTMatrix.of([core.float() for core in cores], tuple(matrix.shape), "fp32")  # type: ignore[arg-type]
    order = len(pairs)
    axes = [axis for k in range(order) for axis in (order + k, k)]
    tensor = matrix.reshape(*outs, *ins).permute(axes)
    sizes = [i * o for i, o in pairs]
    cuts = zip(range(1, order), tt_ranks(sizes, rank)[1:-1], strict=True)
    discarded = [torch.linalg.svdvals(tensor.reshape(prod(sizes[:k]), -1))[r:].square().sum() for k, r in cuts]
    assert (form.dense() - matrix).norm() <= torch.stack(discarded).sum().sqrt() + EXACT * matrix.norm()


@given(several, ranks, seeds)
@settings(max_examples=30)
def test_tt_svd_is_as_good_as_tensorlys(pairs: list[tuple[int, int]], rank: int, seed: int) -> None:
    matrix = _matrix(pairs, seed)
    ins, outs = _split(pairs)
    chain = tt_ranks([i * o for i, o in pairs], rank)
    cores = tt_svd(matrix, ins, outs, rank)
    form = TTMatrix.of([core.float() for core in cores], tuple(matrix.shape), "fp32")  # type: ignore[arg-type]
    peer = tensor_train_matrix(matrix.T.reshape(*ins, *outs).numpy(), rank=chain)
    theirs = torch.from_numpy(tt_matrix.tt_matrix_to_matrix(peer)).T
    assert (form.dense() - matrix).norm() <= (theirs - matrix).norm() + EXACT * matrix.norm()


@given(modes, ranks, seeds)
@settings(max_examples=60)
def test_the_cores_mean_what_they_mean_in_tensorly(pairs: list[tuple[int, int]], rank: int, seed: int) -> None:
    form = _random(pairs, rank, seed)
    theirs = torch.from_numpy(tt_matrix.tt_matrix_to_matrix([core.numpy() for core in form.cores()])).T
    assert (form.dense() - theirs).norm() <= EXACT * theirs.norm()


@given(modes, ranks, seeds, st.integers(0, 3))
@settings(max_examples=60)
def test_padding_never_leaks_and_rows_are_rows(pairs: list[tuple[int, int]], rank: int, seed: int, crop: int) -> None:
    form = _random(pairs, rank, seed, crop)
    whole = _random(pairs, rank, seed).dense()
    dense = form.dense()
    scale = EXACT * max(1.0, float(whole.norm()))
    torch.testing.assert_close(dense, whole[: form.out_features, : form.in_features], rtol=EXACT, atol=scale)
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(form.out_features, (3, 2), generator=random)
    torch.testing.assert_close(form.rows(ids), dense[ids], rtol=EXACT, atol=scale)
    x = torch.randn(4, form.in_features, generator=random)
    assert (form.matmul(x) - x @ dense.T).norm() <= scale * x.norm()


@given(modes, ranks, seeds, st.integers(0, 2))
@settings(max_examples=60)
def test_rounding_keeps_the_matrix_and_raises_no_rank(
    pairs: list[tuple[int, int]], rank: int, seed: int, crop: int
) -> None:
    form = _random(pairs, rank, seed, crop)
    rounded = form.rounded()
    assert (rounded.dense() - form.dense()).norm() <= ROUNDING * _random(pairs, rank, seed).dense().norm()
    sizes = [i * o for i, o in pairs]
    for k, (before, after) in enumerate(zip(form.ranks, rounded.ranks, strict=True)):
        assert after <= min(before, prod(sizes[:k]), prod(sizes[k:]))
    assert rounded.rounded().ranks == rounded.ranks


@given(several, ranks, seeds)
@settings(max_examples=30)
def test_rounding_to_a_rank_is_as_good_as_tt_svd(pairs: list[tuple[int, int]], rank: int, seed: int) -> None:
    form = _random(pairs, 8, seed)
    matrix = form.dense().double()
    rounded = form.rounded(rank)
    assert max(rounded.ranks) <= rank
    cores = tt_svd(matrix, *_split(pairs), rank=rank)
    direct = TTMatrix.of([core.float() for core in cores], form.shape, "fp32")
    torch.testing.assert_close(
        (rounded.dense() - matrix).norm(),
        (direct.dense() - matrix).norm(),
        rtol=1e-3,
        atol=EXACT * float(matrix.norm()),
    )


@given(st.integers(1, 60000), st.integers(1, 5))
@settings(max_examples=60)
def test_balanced_modes_hold_n_with_little_padding(n: int, order: int) -> None:
    sizes = balanced_modes(n, order)
    assert len(sizes) == order
    assert sizes == sorted(sizes)
    assert n <= prod(sizes) <= 2 ** min(order, 3) * n
    assert order > 1 or prod(sizes) == n


@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(1, 100))
def test_published_modes_are_exact_and_reach_the_rank(in_features: int, out_features: int, rank: int) -> None:
    ins, outs = ttm_modes(in_features, out_features, rank)
    assert (prod(ins), prod(outs)) == (in_features, out_features)
    assert all(i * o >= rank for i, o in list(zip(ins, outs, strict=True))[:-1])
    assert len(ins) <= max(1, len(prime_factors(in_features)), len(prime_factors(out_features)))
