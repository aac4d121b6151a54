"""The loss of the tied head, in blocks of positions: the logits of a whole batch never exist."""

from typing import Any

import torch
from torch import Tensor

from compressor.formats.base import blocks

BLOCK_ROWS = 1024  # positions whose logits exist at a time: 34 MB in bf16 at V = 16384
SMALLEST = 1e-30  # probability that is told from 0, so that a loss is finite


def head_loss(hidden: Tensor, weight: Tensor, targets: Tensor, block_rows: int = BLOCK_ROWS) -> Tensor:
    """Return the mean cross-entropy of predicting `targets` [N] by softmax(hidden @ weight.T), in nats.

    Gradients are computed in the same pass over the blocks. Products are in bf16 under autocast.

    Args:
        hidden: [N, D].
        weight: [V, D].
        targets: ids [N].
        block_rows: positions per block.
    """
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    loss: Tensor = _HeadLoss.apply(hidden, weight, targets, block_rows, dtype)  # type: ignore[no-untyped-call]
    return loss


class _HeadLoss(torch.autograd.Function):
    """Cross-entropy and its gradients, block by block."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, block_rows: int, dtype: torch.dtype
    ) -> Tensor:
        states, table = hidden.to(dtype), weight.to(dtype)
        hidden_gradient = torch.empty_like(hidden)
        weight_gradient = torch.zeros_like(weight)
        total = hidden.new_zeros(())
        with torch.autocast(hidden.device.type, enabled=False):
            for block in blocks(len(targets), block_rows):
                part = slice(block.start, block.stop)
                shares = states[part] @ table.T  # [rows, V]
                torch.softmax(shares, -1, out=shares)
                places = torch.arange(len(block), device=hidden.device), targets[part]
                own = shares[places]
                total -= own.to(total.dtype).clamp_min(SMALLEST).log().sum()
                shares[places] = own - 1  # the gradient of the logits; scatter_ would copy them all
                hidden_gradient[part] = shares @ table
                weight_gradient += shares.T @ states[part]
        ctx.save_for_backward(hidden_gradient.div_(len(targets)), weight_gradient.div_(len(targets)))
        return total / len(targets)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        return gradients[0] * hidden_gradient, gradients[0] * weight_gradient, None, None, None
