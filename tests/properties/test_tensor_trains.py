"""Theorems about tensor trains, over random shapes."""

from math import prod

import tensorly
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorly.decomposition import tensor_train

from compressor.artifact.shapes import (
    core_shapes,
    padded_binary_modes,
    prime_factors,
    prime_modes,
    train_size,
    tt_ranks,
)
from compressor.formats import TokenMPS
from compressor.methods.tensorgpt import tt_svd
from tests.tolerances import EXACT

shapes = st.lists(st.integers(1, 5), min_size=1, max_size=5).filter(lambda modes: prod(modes) <= 300)
ranks = st.integers(1, 8)
seeds = st.integers(0, 2**31)


def _tensor(modes: list[int], seed: int) -> torch.Tensor:
    return torch.randn(prod(modes), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _train(tensor: torch.Tensor, modes: list[int], rank: int) -> TokenMPS:
    ranks = tt_ranks(modes, rank)
    cores = tt_svd(tensor.unsqueeze(0), modes, ranks).float()
    return TokenMPS.of(cores, in_features=prod(modes), modes=modes, ranks=ranks, codec="fp32")


@given(shapes, ranks, seeds)
@settings(deadline=None)
def test_the_error_of_tt_svd_is_bounded_by_the_discarded_singular_values(
    modes: list[int], rank: int, seed: int
) -> None:
    tensor = _tensor(modes, seed)
    error = (_train(tensor, modes, rank).dense()[0] - tensor).norm()
    cuts = zip(range(1, len(modes)), tt_ranks(modes, rank)[1:-1], strict=True)
    discarded = [torch.linalg.svdvals(tensor.reshape(prod(modes[:k]), -1))[r:] for k, r in cuts]
    bound = torch.stack([values.square().sum() for values in discarded]).sum().sqrt() if discarded else 0.0
    assert error <= bound + EXACT * tensor.norm()


@given(shapes, seeds)
@settings(deadline=None)
def test_full_rank_reproduces_the_tensor(modes: list[int], seed: int) -> None:
    tensor = _tensor(modes, seed)
    error = (_train(tensor, modes, prod(modes)).dense()[0] - tensor).norm()
    assert error <= EXACT * tensor.norm()


@given(shapes.filter(lambda modes: len(modes) > 1), ranks, seeds)
@settings(deadline=None, max_examples=40)
def test_tt_svd_is_as_good_as_tensorlys(modes: list[int], rank: int, seed: int) -> None:
    tensor = _tensor(modes, seed)
    ours = (_train(tensor, modes, rank).dense()[0] - tensor).norm()
    peer = tensor_train(tensor.reshape(modes).numpy(), rank=tt_ranks(modes, rank))
    theirs = float(tensorly.norm(tensorly.tt_to_tensor(peer) - tensor.reshape(modes).numpy()))
    assert ours <= theirs + EXACT * tensor.norm()


@given(st.integers(1, 5000))
def test_modes_hold_the_width(width: int) -> None:
    assert prod(prime_modes(width)) == width
    assert prod(prime_factors(width)) == width
    assert width <= prod(padded_binary_modes(width)) < 2 * max(width, 2)


@given(shapes, ranks)
def test_ranks_chain_and_never_exceed_what_a_train_can_use(modes: list[int], rank: int) -> None:
    chain = tt_ranks(modes, rank)
    assert chain[0] == chain[-1] == 1
    for k, r in enumerate(chain):
        assert 1 <= r <= min(prod(modes[:k]), prod(modes[k:]))
        assert r <= max(rank, 1)
    assert train_size(modes, chain) == sum(prod(shape) for shape in core_shapes(modes, chain))
