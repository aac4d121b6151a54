"""The product with a tensor-train matrix, forward and backward as TTM-GPT2 trains it (arXiv 2306.02697, section 3).

Cores are G_k [r_{k-1}, in_k, out_k, r_k] and W [in, out] is their train; y = x W.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import opt_einsum
import torch
from torch import Tensor

Modes = tuple[int, ...]


class _Step(NamedTuple):
    """One pairwise contraction: which operands it takes, and how."""

    places: tuple[int, ...]
    equation: str


def ttm_product(x: Tensor, cores: Sequence[Tensor]) -> Tensor:
    """Return x W [..., out] for x [..., in]; between forward and backward only x and the cores are kept.

    The cores may have a wider dtype than x: they are contracted with one another in theirs, with x in its.
    """
    flat = x.reshape(-1, x.shape[-1])
    y: Tensor = _Product.apply(flat, *cores)  # type: ignore[no-untyped-call]
    return y.reshape(*x.shape[:-1], y.shape[-1])


def contracted(x: Tensor, cores: Sequence[Tensor]) -> Tensor:
    """Return x W [B, out] for x [B, in] by the cheapest sequence of pairwise contractions, which is remembered."""
    in_modes, out_modes, ranks = modes_of(cores)
    batch = x.shape[0]
    operands = [x.reshape(batch, *in_modes), cores[0].squeeze(0), *cores[1:]]
    operands[-1] = operands[-1].squeeze(-1)
    for step in _steps(in_modes, out_modes, ranks, batch):
        pair = [operands.pop(place) for place in step.places]
        narrow = min((operand.dtype for operand in pair), key=lambda dtype: dtype.itemsize)
        operands.append(torch.einsum(step.equation, *(operand.to(narrow) for operand in pair)))
    return operands[0].reshape(batch, -1)


def core_gradients(gradient: Tensor, cores: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradient of every core for the gradient of W [in, out].

    Each is W's gradient contracted with all other cores. Those on the left are taken in one by one, from left to
    right, and those on the right once, from right to left, so that every product is shared by all that need it.
    """
    rights = _right_products(cores)
    left = _interleaved(gradient, cores)  # [r_k, modes of cores k .. N - 1]
    found = []
    for core, right in zip(cores, rights, strict=True):
        rows = left.reshape(prod(core.shape[:3]), -1)  # [r_k in_k out_k, modes of cores k + 1 .. N - 1]
        found.append((rows @ right.T).reshape(core.shape))
        left = core.reshape(-1, core.shape[3]).T @ rows
    return found


def modes_of(cores: Sequence[Tensor]) -> tuple[Modes, Modes, Modes]:
    """Return the in modes, the out modes and the ranks of a train of cores."""
    ranks = (*(core.shape[0] for core in cores), cores[-1].shape[3])
    return tuple(core.shape[1] for core in cores), tuple(core.shape[2] for core in cores), ranks


class _Product(torch.autograd.Function):
    """y = x W. Saves x and the cores; W's gradient is formed whole, then contracted down to the cores'."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *cores: Tensor) -> Tensor:
        ctx.save_for_backward(x, *cores)
        with torch.autocast(x.device.type, enabled=False):
            return contracted(x, cores)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, *cores = ctx.saved_tensors
        dy = gradients[0]
        dx = contracted(dy, [core.transpose(1, 2) for core in cores]) if ctx.needs_input_grad[0] else None
        if not any(ctx.needs_input_grad[1:]):
            return dx, *(None for _ in cores)
        weight = (x.T @ dy).to(cores[0].dtype)  # [in, out]
        return dx, *core_gradients(weight, cores)


@lru_cache(maxsize=512)
def _steps(in_modes: Modes, out_modes: Modes, ranks: Modes, batch: int) -> tuple[_Step, ...]:
    """Return the contractions of x [B, in_1 .. in_N] and the cores, without boundary ranks, to [B, out_1 .. out_N]."""
    order = len(in_modes)
    names = iter(opt_einsum.get_symbol(k) for k in range(3 * order))
    row = next(names)
    ins, outs = [next(names) for _ in in_modes], [next(names) for _ in out_modes]
    bonds = ["", *(next(names) for _ in ranks[1:-1]), ""]
    cores = [f"{bonds[k]}{ins[k]}{outs[k]}{bonds[k + 1]}" for k in range(order)]
    equation = f"{row}{''.join(ins)},{','.join(cores)}->{row}{''.join(outs)}"
    sizes = dict(zip([row, *ins, *outs, *bonds[1:-1]], [batch, *in_modes, *out_modes, *ranks[1:-1]], strict=True))
    shapes = [tuple(sizes[axis] for axis in term) for term in equation.partition("->")[0].split(",")]
    _, info = opt_einsum.contract_path(equation, *shapes, shapes=True, optimize="dp")
    return tuple(_Step(tuple(contraction[0]), contraction[2]) for contraction in info.contraction_list)


def _right_products(cores: Sequence[Tensor]) -> list[Tensor]:
    """Return, for every core, the product of those on its right [r_k, their modes]."""
    rights = [cores[-1].new_ones(1, 1)]
    for core in reversed(cores[1:]):
        product = core.reshape(-1, core.shape[3]) @ rights[0]  # [r_{k-1} in_k out_k, modes on the right]
        rights.insert(0, product.reshape(core.shape[0], -1))
    return rights


def _interleaved(matrix: Tensor, cores: Sequence[Tensor]) -> Tensor:
    """Return W [in, out] with its axes in the train's order: in_1, out_1, in_2, out_2, ..."""
    in_modes, out_modes, _ = modes_of(cores)
    order = len(cores)
    axes = [axis for k in range(order) for axis in (k, order + k)]
    return matrix.reshape(*in_modes, *out_modes).permute(axes)
