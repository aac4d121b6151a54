"""Codes of rotated rows: any codec of integers behind a rotation of its columns."""

import torch
from torch import Tensor

from compressor.codecs.base import Codec, Grid, Parts, finite
from compressor.codecs.rotation import block_of, rotate, unrotate


class RotatedCodec(Codec):
    """The codes of another codec, of rows that are rotated first, see `compressor.codecs.rotation`.

    Attributes:
        inner: the codec of the rotated rows.
    """

    is_rotated = True

    def __init__(self, inner: Codec) -> None:
        self.name = f"{inner.name}-h"
        self.inner = inner
        self.codes_stay = inner.codes_stay
        self.row_by_row = inner.row_by_row

    def encode(self, values: Tensor) -> dict[str, Tensor]:
        return self.inner.encode(self.rotated(finite(values, self.name)))

    def decode(self, parts: Parts, columns: int, dtype: torch.dtype) -> Tensor:
        return self.unrotated(self.inner.decode(parts, columns, dtype))

    def take(self, parts: Parts, ids: Tensor, columns: int, dtype: torch.dtype) -> Tensor:
        return self.unrotated(self.inner.take(parts, ids, columns, dtype))

    def grid(self, weight: Tensor, row_weights: Tensor | None = None) -> Grid:
        return self.inner.grid(weight, row_weights)

    def rotated(self, weight: Tensor) -> Tensor:
        return rotate(weight / block_of(weight.shape[-1])[0])

    def unrotated(self, weight: Tensor) -> Tensor:
        return unrotate(weight)

    def latent(self, parts: Parts) -> dict[str, Tensor]:
        return self.inner.latent(parts)

    def round_through(self, values: Tensor, latent: Parts) -> Tensor:
        return self.unrotated(self.inner.round_through(self.rotated(values), latent))

    def encode_trained(self, values: Tensor, latent: Parts) -> dict[str, Tensor]:
        return self.inner.encode_trained(self.rotated(values), latent)
