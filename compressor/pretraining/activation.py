"""The MLP's activation while training: in bf16 it is looked up in a table, which takes less time than computing it."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from compressor import native
from compressor.gpt2 import ACTIVATIONS


def trained_activation(name: str) -> Callable[[Tensor], Tensor]:
    """Return the activation that a config names, one of `compressor.gpt2.ACTIVATIONS`."""
    function = ACTIVATIONS[name]

    def activation(x: Tensor) -> Tensor:
        if not native.AVAILABLE or x.dtype is not torch.bfloat16:
            return function(x)
        y: Tensor = _Lookup.apply(x, _table(name))  # type: ignore[no-untyped-call]
        return y

    return activation


@cache
def _table(name: str) -> native.Table:
    bits = torch.arange(1 << torch.finfo(torch.bfloat16).bits, dtype=torch.int32).to(torch.int16)
    with torch.enable_grad():
        x = bits.view(torch.bfloat16).double().requires_grad_()
        y = ACTIVATIONS[name](x)
        (slopes,) = torch.autograd.grad(y.sum(), x)
    return native.Table(y.detach().to(torch.bfloat16), slopes.float())


class _Lookup(torch.autograd.Function):
    """Both directions are exact but for one rounding to bf16."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, table: native.Table) -> Tensor:
        ctx.save_for_backward(x)
        ctx.table = table
        return native.lookup(table, x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return native.lookup(ctx.table, x, gradients[0]), None
