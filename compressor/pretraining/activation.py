"""The MLP's activation while training: in bf16 it is looked up in a table, which takes less time than computing it."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from compressor.gpt2 import ACTIVATIONS
from compressor.pretraining._lookup import lookup
from compressor.runtime._decoder import MAX_THREADS
from compressor.tensors import array


class _Table(NamedTuple):
    """A function of bf16: all 65,536 of its values and of its derivative's, in the order of their bits.

    Attributes:
        values: bf16 [65536].
        slopes: fp32 [65536].
    """

    values: Tensor
    slopes: Tensor


def trained_activation(name: str) -> Callable[[Tensor], Tensor]:
    """Return the activation that a config names, one of `compressor.gpt2.ACTIVATIONS`."""
    function = ACTIVATIONS[name]

    def activation(x: Tensor) -> Tensor:
        if x.dtype is not torch.bfloat16:
            return function(x)
        y: Tensor = _Lookup.apply(x, _table(name))  # type: ignore[no-untyped-call]
        return y

    return activation


@cache
def _table(name: str) -> _Table:
    bits = torch.arange(1 << torch.finfo(torch.bfloat16).bits, dtype=torch.int32).to(torch.int16)
    with torch.enable_grad():
        x = bits.view(torch.bfloat16).double().requires_grad_()
        y = ACTIVATIONS[name](x)
        (slopes,) = torch.autograd.grad(y.sum(), x)
    return _Table(y.detach().to(torch.bfloat16), slopes.float())


def _lookup(table: _Table, x: Tensor, gradient: Tensor | None = None) -> Tensor:
    """Return f(x) for x in bf16, or f'(x) times `gradient` (bf16, too)."""
    x = x.contiguous()
    out = torch.empty_like(x)
    lookup(
        array(x),
        array(out),
        values=array(table.values),
        slopes=array(table.slopes),
        gradient=None if gradient is None else array(gradient.contiguous()),
        threads=min(torch.get_num_threads(), MAX_THREADS),
    )
    return out


class _Lookup(torch.autograd.Function):
    """Both directions are exact but for one rounding to bf16."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, table: _Table) -> Tensor:
        ctx.save_for_backward(x)
        ctx.table = table
        return _lookup(table, x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return _lookup(ctx.table, x, gradients[0]), None
