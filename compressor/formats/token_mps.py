"""`token_mps`: one tensor train (matrix product state) per row, none of it shared.

Reference: TensorGPT, arXiv 2307.00526, section 3.
"""

from math import prod

import torch
from torch import Tensor

from compressor.artifact.shapes import core_shapes
from compressor.codecs import Coded, codec_named
from compressor.formats.base import Format

BLOCK_ROWS = 4096  # rows decoded at a time by dense: 16 MB at 1024 values


class TokenMPS(Format):
    """Every row is the contraction of N cores [r_{k-1}, n_k, r_k], cropped from prod(n) to `in`.

    The cores of a row are packed one after the other, so all rows are one tensor [out, values].
    """

    kind = "token_mps"
    cores: Coded  # [out, values]

    @classmethod
    def of(cls, cores: Tensor, *, in_features: int, modes: list[int], ranks: list[int], codec: str) -> "TokenMPS":
        """Store packed cores [out, values] by `codec`."""
        coded = {"cores": Coded.encode(codec_named(codec), cores)}
        return cls((cores.shape[0], in_features), coded, {"modes": modes, "ranks": ranks})

    def rows(self, ids: Tensor) -> Tensor:
        flat = self._contract(self.cores.take(ids.reshape(-1)))  # [M, in]
        return flat.reshape(*ids.shape, self.in_features)

    def dense(self) -> Tensor:
        return torch.cat([self.rows(ids) for ids in torch.arange(self.out_features).split(BLOCK_ROWS)])

    def _contract(self, packed: Tensor) -> Tensor:
        """Contract the cores of M rows, left to right: [M, values] -> [M, in]."""
        count = packed.shape[0]
        shapes = core_shapes(self.options["modes"], self.options["ranks"])
        cores = torch.split(packed, [prod(shape) for shape in shapes], dim=-1)
        train = packed.new_ones(count, 1, 1)
        for core, (left, mode, right) in zip(cores, shapes, strict=True):
            train = train @ core.reshape(count, left, mode * right)  # [M, prod n, n_k r_k]
            train = train.reshape(count, train.shape[1] * mode, right)  # [M, prod n * n_k, r_k]
        return train.squeeze(-1)[:, : self.in_features]
