"""8 bits a value, with one scale per row."""

import torch
from torch import Tensor

from compressor.codecs.base import Codec, Grid, Parts, finite, largest_step


class Int8Codec(Codec):
    """Symmetric int8 with one bf16 scale per row, a row being everything along the last axis.

    The scale is rounded to bf16 before the codes are computed, so that it is the one that is
    multiplied by; the largest code is then always 127, and encoding what was decoded changes nothing.
    """

    name = "int8"

    def encode(self, values: Tensor) -> dict[str, Tensor]:
        self.layout(values.shape)
        values = finite(values, self.name)
        scale = self.stored_scale(values.abs().amax(-1, keepdim=True) / 127)
        step = torch.where(scale > 0, scale, 1).float()
        codes = torch.round(values / step).clamp(-127, 127).to(torch.int8)
        return {"codes": codes.contiguous(), "scale": scale}

    def stored_scale(self, scale: Tensor) -> Tensor:
        """Return the scale in bf16, of which 127 are within the range of fp32."""
        return scale.clamp_max(largest_step(127)).bfloat16()

    def decode(self, parts: Parts, columns: int, dtype: torch.dtype) -> Tensor:
        return parts["codes"].to(dtype) * parts["scale"].to(dtype)

    def grid(self, weight: Tensor, row_weights: Tensor | None = None) -> Grid:
        scale = self.encode(weight)["scale"].float()
        return _RowGrid(scale, torch.zeros_like(scale), weight.shape[1], -127, 127)


class _RowGrid(Grid):
    """One scale per row, which keeps its levels."""

    def parts(self, rounded: Tensor, unit: Tensor) -> dict[str, Tensor]:
        codes = torch.round(rounded / torch.where(self.scale > 0, self.scale, 1))
        return {"codes": codes.to(torch.int8), "scale": INT8.stored_scale(self.scale * unit)}


INT8 = Int8Codec()
