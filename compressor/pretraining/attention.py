"""Attention while training: the same numbers as the decoder's, with a backward pass that is fast in bf16."""

from typing import Any

import torch
from torch import Tensor

from compressor.formats.base import blocks
from compressor.gpt2 import Attention

BLOCK_ROWS = 128  # queries at a time; keys behind the last of them are never touched


class TrainedAttention(Attention):
    """The decoder's attention, computed by blocks of queries."""

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the causal attention [B, H, T, D / H] of T tokens to themselves."""
        with torch.autocast(q.device.type, enabled=False):
            return causal_attention(q * self.scale, k, v)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, block_rows: int = BLOCK_ROWS) -> Tensor:
    """Return softmax(q k^T, of what came before and itself) v [B, H, T, D / H], for scaled q.

    Torch's fused kernel skips what is masked, too, but its backward pass took twice as long on CPUs with bf16
    products (heads of 32, 256 and 512 tokens). The price is memory: the attention of every token is kept.
    """
    attended: Tensor = _CausalAttention.apply(q, k, v, block_rows)  # type: ignore[no-untyped-call]
    return attended


class _CausalAttention(torch.autograd.Function):
    """Blocks of queries, each against the keys up to its last one."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, block_rows: int) -> Tensor:
        shares, parts = [], []
        for block in blocks(q.shape[2], block_rows):
            scores = q[:, :, block.start : block.stop] @ k[:, :, : block.stop].transpose(-1, -2)  # [B, H, rows, seen]
            future = torch.ones(len(block), len(block), dtype=torch.bool, device=q.device).triu(1)
            scores[..., block.start :].masked_fill_(future, float("-inf"))
            shares.append(scores.softmax(-1))
            parts.append(shares[-1] @ v[:, :, : block.stop])
        ctx.save_for_backward(q, k, v, *shares)
        ctx.block_rows = block_rows
        return torch.cat(parts, dim=2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *shares = ctx.saved_tensors
        dy = gradients[0]
        dq, dk, dv = (torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
        for block, share in zip(blocks(q.shape[2], ctx.block_rows), shares, strict=True):
            rows, seen = slice(block.start, block.stop), slice(block.stop)
            dv[:, :, seen] += share.transpose(-1, -2) @ dy[:, :, rows]
            upstream = dy[:, :, rows] @ v[:, :, seen].transpose(-1, -2)  # [B, H, rows, seen]
            scores = torch._softmax_backward_data(upstream, share, -1, share.dtype)
            dq[:, :, rows] = scores @ k[:, :, seen]
            dk[:, :, seen] += scores.transpose(-1, -2) @ q[:, :, rows]
        return dq, dk, dv, None
