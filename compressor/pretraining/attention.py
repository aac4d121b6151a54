"""Attention while training: the same numbers as the decoder's, with a backward pass that is fast in bf16."""

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
    products (heads of 32, 256 and 512 tokens).
    """
    parts = []
    for block in blocks(q.shape[2], block_rows):
        scores = q[:, :, block.start : block.stop] @ k[:, :, : block.stop].transpose(-1, -2)  # [B, H, rows, seen]
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(block.start + 1)
        parts.append(scores.masked_fill(future, float("-inf")).softmax(-1) @ v[:, :, : block.stop])
    return torch.cat(parts, dim=2)
