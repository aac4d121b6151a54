"""`stacked`: blocks of rows, each a format of its own."""

from bisect import bisect
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from compressor.formats.base import CutRow, Format, check_ids


class Stacked(Format):
    """W is its blocks, called "0", "1", ..., one below the other.

    The query, key and value of a fused attention matrix, or the frequent and the rare tokens of a table.
    """

    kind = "stacked"

    @classmethod
    def of(cls, blocks: Sequence[Format]) -> "Stacked":
        """Stack `blocks` of equal width from top to bottom."""
        if not blocks:
            raise ValueError("stacked must have at least 1 block, not 0")
        inner = {str(k): block for k, block in enumerate(blocks)}
        shape = (sum(block.out_features for block in blocks), blocks[0].in_features)
        return cls(shape, {}, {}, inner=inner)

    def blocks(self) -> list[Format]:
        """Return the blocks from top to bottom."""
        inner = self.inner()
        return [inner[str(k)] for k in range(len(inner))]

    def rows(self, ids: Tensor) -> Tensor:
        check_ids(ids, self.out_features)
        flat = ids.reshape(-1)
        places, rows, start = [], [], 0
        for block in self.blocks():
            mine = ((flat >= start) & (flat < start + block.out_features)).nonzero().squeeze(-1)
            places.append(mine)
            rows.append(block.rows(flat[mine] - start))  # [rows of this block, in]
            start += block.out_features
        found = torch.cat(rows)[torch.cat(places).argsort()]  # [M, in]
        return found.reshape(*ids.shape, self.in_features)

    def matmul(self, x: Tensor) -> Tensor:
        return torch.cat([block.matmul(x) for block in self.blocks()], dim=-1)  # [..., out]

    def replace_row(self, row: int, cut: CutRow) -> "Stacked":
        """Replace the row in the block it belongs to; rows are appended to the last one."""
        blocks = self.blocks()
        starts = [0, *accumulate(block.out_features for block in blocks[:-1])]
        k = bisect(starts, row) - 1
        blocks[k] = blocks[k].replace_row(row - starts[k], cut)
        return Stacked.of(blocks)

    def dense(self) -> Tensor:
        return torch.cat([block.dense() for block in self.blocks()])
