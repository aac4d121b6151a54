"""2 to 4 bits a value, with a scale per group."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from compressor.artifact.layouts import integers_named
from compressor.codecs.base import (
    MOST_BF16,
    MOST_FP32,
    Codec,
    Grid,
    Parts,
    bf16,
    finite,
    largest_step,
    power_of_2,
)

# Shares of the range that the clip search tries; fewer levels want more clipping.
CLIPS = {bits: torch.linspace(1.0, narrowest, 12).tolist() for bits, narrowest in ((4, 0.70), (3, 0.55), (2, 0.40))}
# For groups that would lose more than half of themselves: the range is that of an outlier, and all else vanishes in it.
OUTLIER_CLIPS = [0.8**k for k in range(30)]


class GroupCodec(Codec):
    """2, 3 or 4 bits a value, with a bf16 scale per group of the last axis; the last group may be ragged.

    Symmetric: level c lies at (c - (2^bits - 1) / 2) * scale, so that no level is wasted on zero. With zero
    points: at zero + c * scale. Per group, the largest values are clipped where that lowers the squared error.

    Attributes:
        bits: per value.
        steps: between the lowest and the highest level.
        group: values per scale; 0 for the whole row.
        zero_point: whether every group has a bf16 zero.
    """

    def __init__(self, bits: int, group: int, zero_point: bool = False) -> None:
        self.name = f"int{bits}-{f'g{group}' if group else 'row'}{'-zp' if zero_point else ''}"
        integers_named(self.name)  # refuses other bits and groups
        self.bits = bits
        self.steps = 2**bits - 1
        self.group = group
        self.zero_point = zero_point

    def num_groups(self, columns: int) -> int:
        """Return how many groups a row of `columns` values has."""
        return -(-columns // self.group) if self.group else 1

    def encode(self, values: Tensor) -> dict[str, Tensor]:
        self.layout(values.shape)
        scale, zero = self.search(finite(values, self.name))
        return self.encode_with(values, scale, zero)

    def search(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scale and zero [..., groups], in fp32, that store `values` with the least squared error.

        It is never more than that of storing zeros, a scale of 0, nor than that of rounding to nearest unclipped.
        """
        grouped, real = self._grouped(values.float())  # [..., groups, group]
        # In units of a power of 2 near its largest value no group's squares overflow or vanish, and nothing rounds.
        unit = power_of_2(grouped.abs().amax(-1))
        grouped, real = grouped / unit.unsqueeze(-1), real.expand_as(grouped)
        scale, zero, error = self._best(grouped, real, unit, CLIPS[self.bits])
        lost = error > grouped.square().sum(-1) / 2
        if lost.any():
            scale[lost], zero[lost], _ = self._best(grouped[lost], real[lost], unit[lost], OUTLIER_CLIPS)
        return scale * unit, zero * unit

    def _best(
        self, grouped: Tensor, real: Tensor, unit: Tensor, clips: Sequence[float]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the scale, the zero and the squared error [..., groups] of the best share of the range, in units."""
        if self.zero_point:
            low = torch.where(real, grouped, torch.inf).amin(-1)
            high = torch.where(real, grouped, -torch.inf).amax(-1)
        else:
            high = grouped.abs().amax(-1)
            low = -high
        low, high = (torch.nan_to_num(x, posinf=0.0, neginf=0.0) for x in (low, high))
        best_scale = best_zero = torch.zeros_like(low)
        best = grouped.square().sum(-1)  # of a scale of 0, which stores zeros
        for clip in clips:
            scale = bf16((high - low) * clip / self.steps)
            scale, zero = self._levels(scale * unit, ((low + high) / 2 - self.steps / 2 * scale) * unit)
            scale, zero = scale / unit, zero / unit
            error = torch.where(real, self._round(grouped, scale, zero) - grouped, 0).square().sum(-1)
            best_scale = torch.where(error < best, scale, best_scale)
            best_zero = torch.where(error < best, zero, best_zero)
            best = torch.minimum(error, best)
        return best_scale, best_zero, best

    def encode_with(self, values: Tensor, scale: Tensor, zero: Tensor) -> dict[str, Tensor]:
        """Return the parts of `values` [..., n] for a given scale and zero [..., groups]."""
        scale, zero = self._levels(scale, zero)
        grouped, _ = self._grouped(values.float())
        codes = self._codes(grouped, scale, zero).flatten(-2)[..., : values.shape[-1]]
        parts = {"codes": pack(codes.to(torch.int64), self.bits), "scale": scale.bfloat16()}
        return parts | ({"zero": zero.bfloat16()} if self.zero_point else {})

    def decode(self, parts: Parts, columns: int, dtype: torch.dtype) -> Tensor:
        codes, _ = self._grouped(unpack(parts["codes"], self.bits)[..., :columns].to(dtype))
        scale = parts["scale"].to(dtype).unsqueeze(-1)
        if self.zero_point:
            values = codes * scale + parts["zero"].to(dtype).unsqueeze(-1)
        else:
            values = (codes - (2**self.bits - 1) / 2) * scale
        return values.flatten(-2)[..., :columns]

    def grid(self, weight: Tensor, row_weights: Tensor | None = None) -> Grid:
        return _GroupGrid(self, weight)

    def latent(self, parts: Parts) -> dict[str, Tensor]:
        """Return the scales and zeros.

        Their gradient is that of learned step sizes (Esser et al., arXiv 1902.08153, section 2.1).
        """
        return {name: part.float() for name, part in parts.items() if name != "codes"}

    def round_through(self, values: Tensor, latent: Parts) -> Tensor:
        """Return what is stored of `values`; those that are clipped get no gradient."""
        columns, half = values.shape[-1], (2**self.bits - 1) / 2
        grouped, _ = self._grouped(values)
        scale, zero = latent["scale"], latent.get("zero")
        step = _through(bf16(scale.detach().clamp_min(1e-12)), scale).unsqueeze(-1)
        origin = -half * step if zero is None else _through(bf16(zero.detach()), zero).unsqueeze(-1)
        position = ((grouped - origin) / step).clamp(0, 2 * half)
        codes = _through(torch.round(position.detach()), position)
        return (codes * step + origin).flatten(-2)[..., :columns]

    def encode_trained(self, values: Tensor, latent: Parts) -> dict[str, Tensor]:
        scale = latent["scale"]
        return self.encode_with(values, scale.clamp_min(0), latent.get("zero", scale))

    def _grouped(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the values [..., groups, group], zeros appended, and which of them are real."""
        columns = values.shape[-1]
        groups = self.num_groups(columns)
        size = self.group or columns
        grouped = F.pad(values, (0, groups * size - columns)).unflatten(-1, (groups, size))
        return grouped, (torch.arange(groups * size) < columns).view(groups, size)

    def _levels(self, scale: Tensor, zero: Tensor) -> tuple[Tensor, Tensor]:
        """Return a scale and zero as they are stored, in fp32, none of whose levels is infinite."""
        if not self.zero_point:
            scale = bf16(scale.clamp_max(largest_step(self.steps / 2)))
            return scale, -self.steps / 2 * scale
        scale = bf16(scale.clamp_max(largest_step(self.steps)))
        room = (MOST_FP32 - self.steps * scale) * (1 - 2**-7)  # above the zero, less what bf16 may round up
        return scale, bf16(torch.minimum(zero, room).clamp_min(-MOST_BF16))

    def _codes(self, grouped: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        step = torch.where(scale > 0, scale, 1).unsqueeze(-1)
        return torch.round((grouped - zero.unsqueeze(-1)) / step).clamp(0, 2**self.bits - 1)

    def _round(self, grouped: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        return self._codes(grouped, scale, zero) * scale.unsqueeze(-1) + zero.unsqueeze(-1)


class _GroupGrid(Grid):
    """Levels of round-to-nearest, which may be found anew for a group whose weights have moved."""

    renews = True

    def __init__(self, codec: GroupCodec, weight: Tensor) -> None:
        super().__init__(*codec.search(weight), codec.group or weight.shape[1], 0, codec.steps)
        self._codec = codec

    def renew(self, column: int, weight: Tensor) -> None:
        scale, zero = self._codec.search(weight[:, column : column + self.group].float())
        self.scale[:, column // self.group], self.zero[:, column // self.group] = scale[:, 0], zero[:, 0]

    def parts(self, rounded: Tensor, unit: Tensor) -> dict[str, Tensor]:
        return self._codec.encode_with(rounded * unit, self.scale * unit, self.zero * unit)


def _through(forward: Tensor, backward: Tensor) -> Tensor:
    """Return `forward` with the gradient of `backward`."""
    return backward + (forward - backward).detach()


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack codes [..., n] of `bits` bits into bytes [..., ceil(n / 8) * bits], lowest bits first."""
    eights = F.pad(codes, (0, -codes.shape[-1] % 8)).unflatten(-1, (-1, 8))  # [..., n / 8, 8]
    words = (eights << (bits * torch.arange(8))).sum(-1, keepdim=True)  # [..., n / 8, 1]
    packed: Tensor = words >> (8 * torch.arange(bits)) & 255
    return packed.to(torch.uint8).flatten(-2)


def unpack(packed: Tensor, bits: int) -> Tensor:
    """Return the codes [..., m] of `pack`, m a multiple of 8."""
    bytes_ = packed.to(torch.int32 if bits < 4 else torch.int64).unflatten(-1, (-1, bits))  # [..., m / 8, bits]
    words = (bytes_ << (8 * torch.arange(bits))).sum(-1, keepdim=True)
    codes: Tensor = words >> (bits * torch.arange(8)) & (2**bits - 1)
    return codes.flatten(-2)
