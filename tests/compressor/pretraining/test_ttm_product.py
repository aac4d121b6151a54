"""The product with a tensor-train matrix: right, differentiable, and frugal between forward and backward."""

from math import prod

import pytest
import torch
from torch import Tensor

from compressor.artifact.shapes import left_capped_ranks, ttm_modes
from compressor.pretraining.layers import SPREAD, TTMLayer, drawn_cores
from compressor.pretraining.ttm import contracted, ttm_product
from tests.tolerances import EXACT, ROUNDING

# in, out, rank: one core, two and three; wider, narrower; ranks that only the left caps.
CASES = [(6, 10, 60), (8, 12, 4), (12, 8, 4), (16, 64, 5), (64, 16, 5), (24, 24, 12)]
# Values per published 768 -> 3072 matrix, at the published ranks and after right-capping.
PUBLISHED = {16: 13_120, 32: 166_080, 64: 659_840, 72: 1_348_128, 80: 1_661_760}
ROUNDED_64 = 303_140


def _cores(in_features: int, out_features: int, rank: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    in_modes, out_modes = ttm_modes(in_features, out_features, rank)
    ranks = left_capped_ranks([i * o for i, o in zip(in_modes, out_modes, strict=True)], rank)
    cores = drawn_cores(in_modes, out_modes, ranks, torch.Generator().manual_seed(0))
    return [(core / SPREAD ** (1 / len(cores))).to(dtype).requires_grad_() for core in cores]


def _matrix(cores: list[Tensor]) -> Tensor:
    """Return W [in, out], multiplied core by core with plain operations."""
    train = cores[0].new_ones(1, 1, 1)
    for core in cores:
        train = torch.einsum("xyr,rios->xiyos", train, core).flatten(2, 3).flatten(0, 1)
    return train.squeeze(-1)


@pytest.mark.parametrize("case", CASES)
def test_gradients_pass_gradcheck(case: tuple[int, int, int]) -> None:
    cores = _cores(*case)
    x = torch.randn(3, case[0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *cores: ttm_product(x, cores), (x, *cores))


@pytest.mark.parametrize("case", CASES)
def test_it_agrees_with_autograd_through_the_matrix(case: tuple[int, int, int]) -> None:
    cores = _cores(*case)
    x = torch.randn(2, 5, case[0], dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 5, case[1], dtype=torch.float64)
    ours = torch.autograd.grad((ttm_product(x, cores) * weights).sum(), [x, *cores])
    expected = torch.autograd.grad((x @ _matrix(cores) * weights).sum(), [x, *cores])
    assert torch.allclose(ttm_product(x, cores), x @ _matrix(cores))
    for mine, theirs in zip(ours, expected, strict=True):
        assert torch.allclose(mine, theirs)


def test_frozen_cores_and_inputs_get_no_gradient() -> None:
    cores = [core.detach() for core in _cores(8, 12, 4)]
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    ttm_product(x, cores).sum().backward()
    assert x.grad is not None
    cores[0].requires_grad_()
    ttm_product(x.detach(), cores).sum().backward()
    assert cores[0].grad is not None


@pytest.mark.parametrize("rows", [1, 7, 4096])
def test_the_order_of_contraction_does_not_change_the_product(rows: int) -> None:
    cores = [core.detach() for core in _cores(64, 16, 5)]
    x = torch.randn(rows, 64, dtype=torch.float64)
    assert torch.allclose(contracted(x, cores), x @ _matrix(cores))


@pytest.mark.parametrize("rank", [16, 32, 64])
def test_x_and_the_cores_are_kept_and_nothing_else(rank: int) -> None:
    layer = TTMLayer(1024, 256, rank, torch.Generator().manual_seed(0))
    x = torch.randn(64, 256)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(x).sum()
    own = {tensor.untyped_storage().data_ptr() for tensor in (x, *layer.cores)}
    assert kept.keys() == own


def test_under_autocast_products_are_in_bf16_and_gradients_in_fp32() -> None:
    layer = TTMLayer(32, 16, 4, torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(torch.randn(8, 16))
    y.float().square().sum().backward()
    assert y.dtype == torch.bfloat16
    assert all(core.grad is not None and core.grad.dtype == torch.float32 for core in layer.cores)


@pytest.mark.parametrize(("rank", "values"), PUBLISHED.items())
def test_a_layer_has_the_published_number_of_values(rank: int, values: int) -> None:
    layer = TTMLayer(3072, 768, rank, torch.Generator().manual_seed(0))
    assert sum(core.numel() for core in layer.cores) == values


def test_cores_are_orthonormal_but_the_last_and_the_matrix_has_the_published_spread() -> None:
    layer = TTMLayer(1024, 256, 32, torch.Generator().manual_seed(0))
    cores = [core.detach() for core in layer.cores]
    for core in cores[:-1]:
        flat = core.flatten(0, 2)
        assert torch.allclose(flat.T @ flat, torch.eye(flat.shape[1]), atol=EXACT)
    assert float(_matrix(cores).std()) == pytest.approx(SPREAD, rel=0.05)
    assert not layer.bias.any()


def test_sealing_rounds_to_what_the_modes_can_use_at_no_loss() -> None:
    layer = TTMLayer(3072, 768, 64, torch.Generator().manual_seed(0))
    form, _ = layer.quantized()
    assert sum(prod(coded.shape) for coded in form.coded().values()) == ROUNDED_64
    matrix = _matrix([core.detach().double() for core in layer.cores]).T
    assert float((form.dense().double() - matrix).norm() / matrix.norm()) < ROUNDING
