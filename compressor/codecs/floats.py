"""Floating-point dtypes."""

import torch
from torch import Tensor

from compressor.codecs.base import Codec, Parts


class FloatCodec(Codec):
    """A plain floating-point dtype."""

    is_float = True

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        self.name = name
        self.dtype = dtype

    def encode(self, values: Tensor) -> dict[str, Tensor]:
        stored = values.to(self.dtype)
        if not torch.isfinite(stored).all():
            raise ValueError(f"values must be finite and within the range of {self.name} ({_range(self.dtype)})")
        return {"values": stored.contiguous()}

    def decode(self, parts: Parts, columns: int, dtype: torch.dtype) -> Tensor:
        return parts["values"].to(dtype)

    def round_through(self, values: Tensor, latent: Parts) -> Tensor:
        return values  # training is in fp32, and only what is stored is rounded


def _range(dtype: torch.dtype) -> str:
    return f"at most {torch.finfo(dtype).max:g} in magnitude"
