"""Attention while training: the same values as the decoder's, with a backward pass that is fast in bf16."""

from typing import Any

import torch
from torch import Tensor

from compressor.formats.base import blocks
from compressor.gpt2 import Attention

BLOCK_ROWS = 64  # queries at a time; keys behind the last of them are never touched


class TrainedAttention(Attention):
    """The decoder's attention, computed by blocks of queries."""

    def attend(self, qkv: Tensor) -> Tensor:
        """Return the causal attention [B, T, D] of T tokens to themselves, for qkv [B, T, 3 D]."""
        return causal_attention(qkv, self.n_head, self.scale)


def causal_attention(qkv: Tensor, heads: int, scale: float, block_rows: int = BLOCK_ROWS) -> Tensor:
    """Return softmax(scale q k^T, of what came before and itself) v [B, T, D], for qkv [B, T, 3 D].

    Torch's fused kernel skips what is masked, too, but took 2.5 times as long, forward and backward, on CPUs with bf16
    products (heads of 32, 256 and 512 tokens). The price is memory: the attention of every token is kept.
    """
    attended: Tensor = _CausalAttention.apply(qkv, heads, scale, block_rows)  # type: ignore[no-untyped-call]
    return attended


class _CausalAttention(torch.autograd.Function):
    """Blocks of queries [B H, rows, D / H], each against the keys up to its last one."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, heads: int, scale: float, block_rows: int) -> Tensor:
        ctx.scale, ctx.block_rows = scale, block_rows
        ctx.shape = b, t, _ = qkv.shape
        with torch.autocast(qkv.device.type, enabled=False):
            parts = qkv.view(b, t, 3, heads, -1).permute(2, 0, 3, 1, 4).clone(memory_format=torch.contiguous_format)
            q, k, v = parts = parts.flatten(1, 2)  # 3 x [B H, T, D / H]
            q.mul_(scale)
            attended, shares = torch.empty_like(q), []
            future = q.new_full((block_rows, block_rows), float("-inf")).triu(1)
            for block in blocks(t, block_rows):
                rows, seen, size = slice(block.start, block.stop), slice(block.stop), len(block)
                scores = q[:, rows] @ k[:, seen].transpose(1, 2)  # [B H, rows, seen]
                scores[:, :, rows] += future[:size, :size]
                shares.append(torch.softmax(scores, -1, out=scores))
                torch.bmm(shares[-1], v[:, seen], out=attended[:, rows])
        ctx.save_for_backward(parts, *shares)
        return attended.view(b, heads, t, -1).transpose(1, 2).reshape(b, t, -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        parts, *shares = ctx.saved_tensors
        b, t, width = ctx.shape
        q, k, v = parts
        heads = len(q) // b
        dy = gradients[0].view(b, t, heads, -1).transpose(1, 2).flatten(0, 1)  # [B H, T, D / H]
        upstream = torch.zeros_like(parts)
        dq, dk, dv = upstream
        for block, share in zip(blocks(t, ctx.block_rows), shares, strict=True):
            rows, seen = slice(block.start, block.stop), slice(block.stop)
            dv[:, seen].baddbmm_(share.transpose(1, 2), dy[:, rows])
            dshare = dy[:, rows] @ v[:, seen].transpose(1, 2)  # [B H, rows, seen]
            scores = torch._softmax_backward_data(dshare, share, -1, share.dtype)
            torch.bmm(scores, k[:, seen], out=dq[:, rows])
            dk[:, seen].baddbmm_(scores.transpose(1, 2), q[:, rows])
        dq.mul_(ctx.scale)
        dqkv = upstream.view(3, b, heads, t, -1).permute(1, 3, 0, 2, 4)  # [B, T, 3, H, D / H]
        return dqkv.reshape(b, t, width), None, None, None
