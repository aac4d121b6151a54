"""Attention while training: the same numbers as the decoder's, with a backward pass that is fast in bf16."""

from typing import Any

import torch
from torch import Tensor

from compressor.formats.base import blocks
from compressor.gpt2 import Attention

BLOCK_ROWS = 64  # queries at a time; keys behind the last of them are never touched


class TrainedAttention(Attention):
    """The decoder's attention, computed by blocks of queries."""

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the causal attention [B, H, T, D / H] of T tokens to themselves."""
        with torch.autocast(q.device.type, enabled=False):
            return causal_attention(q * self.scale, k, v)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, block_rows: int = BLOCK_ROWS) -> Tensor:
    """Return softmax(q k^T, of what came before and itself) v [B, H, T, D / H], for scaled q.

    Torch's fused kernel skips what is masked, too, but took 2.5 times as long, forward and backward, on CPUs with bf16
    products (heads of 32, 256 and 512 tokens). The price is memory: the attention of every token is kept.
    """
    heads = (x.flatten(0, 1) for x in (q, k, v))
    attended: Tensor = _CausalAttention.apply(*heads, block_rows)  # type: ignore[no-untyped-call]
    return attended.view(q.shape)


class _CausalAttention(torch.autograd.Function):
    """Blocks of queries [B H, rows, D / H], each against the keys up to its last one."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, block_rows: int) -> Tensor:
        attended, shares = torch.empty_like(q), []
        future = q.new_full((block_rows, block_rows), float("-inf")).triu(1)
        for block in blocks(q.shape[1], block_rows):
            rows, seen, size = slice(block.start, block.stop), slice(block.stop), len(block)
            scores = q[:, rows] @ k[:, seen].transpose(1, 2)  # [B H, rows, seen]
            scores[:, :, rows] += future[:size, :size]
            shares.append(torch.softmax(scores, -1, out=scores))
            torch.bmm(shares[-1], v[:, seen], out=attended[:, rows])
        ctx.save_for_backward(q, k, v, *shares)
        ctx.block_rows = block_rows
        return attended

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *shares = ctx.saved_tensors
        dy = gradients[0]
        dq, dk, dv = (torch.zeros_like(x) for x in (q, k, v))
        for block, share in zip(blocks(q.shape[1], ctx.block_rows), shares, strict=True):
            rows, seen = slice(block.start, block.stop), slice(block.stop)
            dv[:, seen].baddbmm_(share.transpose(1, 2), dy[:, rows])
            upstream = dy[:, rows] @ v[:, seen].transpose(1, 2)  # [B H, rows, seen]
            scores = torch._softmax_backward_data(upstream, share, -1, share.dtype)
            torch.bmm(scores, k[:, seen], out=dq[:, rows])
            dk[:, seen].baddbmm_(scores.transpose(1, 2), q[:, rows])
        return dq, dk, dv, None
