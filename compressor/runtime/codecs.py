"""Codecs: how the numbers of one tensor of any shape are stored.

A codec turns values [..., n] into named parts, all of which share the leading axes of the values.
So a row can be taken from the parts before anything is decoded.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressor.errors import check_range
from compressor.runtime import native

Parts = Mapping[str, Tensor]

# torch's int8 kernel reads past the end of rows that are not a multiple of its vectors (seen to crash at 20).
KERNEL_COLUMNS = 32
# Groups of 4-bit codes that are a multiple of this are kept as they are, also where no kernel was built to say so.
KERNEL_GROUP = 64
MOST_FP32, MOST_BF16 = torch.finfo(torch.float32).max, torch.finfo(torch.bfloat16).max


class PartLayout(NamedTuple):
    """Shape and dtype that a part must have."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class Codec(ABC):
    """One way to store the numbers of a tensor.

    Laws: `layout(x.shape)` describes `encode(x)`; encoding row by row gives the rows of the encoding.
    """

    name: str

    @abstractmethod
    def layout(self, shape: Sequence[int]) -> dict[str, PartLayout]:
        """Return the parts that a tensor of `shape` is stored as."""

    @abstractmethod
    def encode(self, values: Tensor) -> dict[str, Tensor]:
        """Return the parts of `values` [..., n], in any float dtype and finite."""

    @abstractmethod
    def decode(self, parts: Parts, columns: int, dtype: torch.dtype) -> Tensor:
        """Return the values [..., columns]."""

    def linear(self, parts: Parts, x: Tensor) -> Tensor:
        """Return x @ W.T [..., m] for a stored matrix W [m, n] and x [..., n], on any CPU."""
        return F.linear(x, self.decode(parts, x.shape[-1], x.dtype))

    def has_kernel(self, columns: int) -> bool:
        """Return whether matrices of so many columns are multiplied as they are stored, on CPUs that can."""
        return False

    def kernel(self, parts: Parts, columns: int) -> "native.Matrix | None":
        """Return what `compressor.runtime.native` multiplies by, or None where it cannot."""
        return None


class FloatCodec(Codec):
    """A plain floating-point dtype."""

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        self.name = name
        self.dtype = dtype

    def layout(self, shape: Sequence[int]) -> dict[str, PartLayout]:
        return {"values": PartLayout(tuple(shape), self.dtype)}

    def encode(self, values: Tensor) -> dict[str, Tensor]:
        stored = values.to(self.dtype)
        if not torch.isfinite(stored).all():
            raise ValueError(f"values must be finite and within the range of {self.name} ({_range(self.dtype)})")
        return {"values": stored.contiguous()}

    def decode(self, parts: Parts, columns: int, dtype: torch.dtype) -> Tensor:
        return parts["values"].to(dtype)


class Int8Codec(Codec):
    """Symmetric int8 with one bf16 scale per row, a row being everything along the last axis.

    The scale is rounded to bf16 before the codes are computed, so that it is the one that the low-bit kernel
    multiplies by; the largest code is then always 127, and encoding what was decoded changes nothing.
    """

    name = "int8"

    def layout(self, shape: Sequence[int]) -> dict[str, PartLayout]:
        if not shape:
            raise ValueError("int8 stores tensors of at least 1 dimension, not 0")
        return {
            "codes": PartLayout(tuple(shape), torch.int8),
            "scale": PartLayout((*shape[:-1], 1), torch.bfloat16),
        }

    def encode(self, values: Tensor) -> dict[str, Tensor]:
        self.layout(values.shape)
        values = finite(values, self.name)
        scale = self.stored_scale(values.abs().amax(-1, keepdim=True) / 127)
        step = torch.where(scale > 0, scale, 1).float()
        codes = torch.round(values / step).clamp(-127, 127).to(torch.int8)
        return {"codes": codes.contiguous(), "scale": scale}

    def stored_scale(self, scale: Tensor) -> Tensor:
        """Return the scale in bf16, of which 127 are within the range of fp32."""
        return scale.clamp_max(_largest_step(127)).bfloat16()

    def decode(self, parts: Parts, columns: int, dtype: torch.dtype) -> Tensor:
        return parts["codes"].to(dtype) * parts["scale"].to(dtype)

    def linear(self, parts: Parts, x: Tensor) -> Tensor:
        """Multiply through torch's weight-only int8 kernel, whose activations are bf16."""
        if x.requires_grad or x.shape[-1] % KERNEL_COLUMNS:  # the kernel has no derivative and no remainder loop
            return super().linear(parts, x)
        flat = x.reshape(-1, x.shape[-1]).bfloat16()  # [rows, n]
        y = torch._weight_int8pack_mm(flat, parts["codes"], parts["scale"].squeeze(-1))
        return y.to(x.dtype).reshape(*x.shape[:-1], -1)

    def has_kernel(self, columns: int) -> bool:
        return True

    def kernel(self, parts: Parts, columns: int) -> "native.Matrix | None":
        return native.matrix(parts["codes"], parts["scale"])


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
        check_range("bits", bits, 2, 4)
        if group and not 8 <= group <= 65536:
            raise ValueError(f"group must be 0 (the whole row) or between 8 and 65536, not {group}")
        self.name = f"int{bits}-{f'g{group}' if group else 'row'}{'-zp' if zero_point else ''}"
        self.bits = bits
        self.steps = 2**bits - 1
        self.group = group
        self.zero_point = zero_point

    def layout(self, shape: Sequence[int]) -> dict[str, PartLayout]:
        if not shape:
            raise ValueError(f"{self.name} stores tensors of at least 1 dimension, not 0")
        *lead, columns = shape
        per_group = PartLayout((*lead, self.num_groups(columns)), torch.bfloat16)
        codes = PartLayout((*lead, -(-columns // 8) * self.bits), torch.uint8)
        return {"codes": codes, "scale": per_group} | ({"zero": per_group} if self.zero_point else {})

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
            scale = _bf16((high - low) * clip / self.steps)
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
        parts = {"codes": _pack(codes.to(torch.int64), self.bits), "scale": scale.bfloat16()}
        return parts | ({"zero": zero.bfloat16()} if self.zero_point else {})

    def decode(self, parts: Parts, columns: int, dtype: torch.dtype) -> Tensor:
        codes, _ = self._grouped(_unpack(parts["codes"], self.bits)[..., :columns].to(dtype))
        scale = parts["scale"].to(dtype).unsqueeze(-1)
        if self.zero_point:
            values = codes * scale + parts["zero"].to(dtype).unsqueeze(-1)
        else:
            values = (codes - (2**self.bits - 1) / 2) * scale
        return values.flatten(-2)[..., :columns]

    def has_kernel(self, columns: int) -> bool:
        group = self.group or columns
        return self.bits == 4 and not self.zero_point and columns % group == group % KERNEL_GROUP == 0

    def kernel(self, parts: Parts, columns: int) -> "native.Matrix | None":
        return native.matrix(parts["codes"], parts["scale"]) if self.has_kernel(columns) else None

    def round_through(self, values: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
        """Return decode(encode_with(...)), differentiable in the values, the scale and the zero."""
        columns, half = values.shape[-1], (2**self.bits - 1) / 2
        grouped, _ = self._grouped(values)
        step = _through(_bf16(scale.detach().clamp_min(1e-12)), scale).unsqueeze(-1)
        origin = -half * step if zero is None else _through(_bf16(zero.detach()), zero).unsqueeze(-1)
        position = ((grouped - origin) / step).clamp(0, 2 * half)
        codes = _through(torch.round(position.detach()), position)
        return (codes * step + origin).flatten(-2)[..., :columns]

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
            scale = _bf16(scale.clamp_max(_largest_step(self.steps / 2)))
            return scale, -self.steps / 2 * scale
        scale = _bf16(scale.clamp_max(_largest_step(self.steps)))
        room = (MOST_FP32 - self.steps * scale) * (1 - 2**-7)  # above the zero, less what bf16 may round up
        return scale, _bf16(torch.minimum(zero, room).clamp_min(-MOST_BF16))

    def _codes(self, grouped: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        step = torch.where(scale > 0, scale, 1).unsqueeze(-1)
        return torch.round((grouped - zero.unsqueeze(-1)) / step).clamp(0, 2**self.bits - 1)

    def _round(self, grouped: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        return self._codes(grouped, scale, zero) * scale.unsqueeze(-1) + zero.unsqueeze(-1)


# Shares of the range that the clip search tries; fewer levels want more clipping.
CLIPS = {bits: torch.linspace(1.0, narrowest, 12).tolist() for bits, narrowest in ((4, 0.70), (3, 0.55), (2, 0.40))}
# For groups that would lose more than half of themselves: the range is that of an outlier, and all else vanishes in it.
OUTLIER_CLIPS = [0.8**k for k in range(30)]


def _through(forward: Tensor, backward: Tensor) -> Tensor:
    """Return `forward` with the gradient of `backward`."""
    return backward + (forward - backward).detach()


def finite(values: Tensor, codec: str) -> Tensor:
    """Return `values` in fp32; raises ValueError if one is not finite."""
    if not torch.isfinite(values).all():
        raise ValueError(f"values must be finite to be stored as {codec}")
    return values.float()


def _pack(codes: Tensor, bits: int) -> Tensor:
    """Pack codes [..., n] of `bits` bits into bytes [..., ceil(n / 8) * bits], lowest bits first."""
    eights = F.pad(codes, (0, -codes.shape[-1] % 8)).unflatten(-1, (-1, 8))  # [..., n / 8, 8]
    words = (eights << (bits * torch.arange(8))).sum(-1, keepdim=True)  # [..., n / 8, 1]
    packed: Tensor = words >> (8 * torch.arange(bits)) & 255
    return packed.to(torch.uint8).flatten(-2)


def _unpack(packed: Tensor, bits: int) -> Tensor:
    """Return the codes [..., m] of `_pack`, m a multiple of 8."""
    bytes_ = packed.to(torch.int32 if bits < 4 else torch.int64).unflatten(-1, (-1, bits))  # [..., m / 8, bits]
    words = (bytes_ << (8 * torch.arange(bits))).sum(-1, keepdim=True)
    codes: Tensor = words >> (bits * torch.arange(8)) & (2**bits - 1)
    return codes.flatten(-2)


def _largest_step(steps: float) -> float:
    """Return the largest bf16 of which so many are within the range of fp32."""
    return float(torch.tensor(MOST_FP32 / steps * (1 - 2**-8)).bfloat16())


def power_of_2(sizes: Tensor) -> Tensor:
    """Return a power of 2 within a factor of 2 of each of the `sizes` in fp32, and 2**-126 for 0 and denormals."""
    exponents = sizes.contiguous().view(torch.int32) & 0x7F800000
    return exponents.view(torch.float32).clamp(2.0**-126, 2.0**126)


def _range(dtype: torch.dtype) -> str:
    return f"at most {torch.finfo(dtype).max:g} in magnitude"


def _bf16(values: Tensor) -> Tensor:
    """Round fp32 values to bf16, and keep them in fp32."""
    return values.bfloat16().float()


CODECS: dict[str, Codec] = {
    "fp32": FloatCodec("fp32", torch.float32),
    "bf16": FloatCodec("bf16", torch.bfloat16),
    "fp16": FloatCodec("fp16", torch.float16),
    "int8": Int8Codec(),
    "int4": GroupCodec(4, 64),
    "int3": GroupCodec(3, 64),
    "int2": GroupCodec(2, 32),
}
GROUP_CODEC = re.compile(r"int([234])-(?:g([1-9]\d{0,5})|row)(-zp)?")


@cache
def codec_named(name: str) -> Codec:
    """Return the codec called `name`: a key of CODECS, or int2, int3 or int4 with a group of one's own.

    "int4-g128" has groups of 128, "int4-row" one group per row; "-zp" after either adds zero points.

    Raises:
        ValueError: naming the legal codecs.
    """
    if name in CODECS:
        return CODECS[name]
    if match := GROUP_CODEC.fullmatch(name):
        return GroupCodec(int(match[1]), int(match[2] or 0), bool(match[3]))
    legal = f"{', '.join(CODECS)}, or int2, int3, int4 with -g<group> or -row, and -zp for zero points"
    raise ValueError(f"codec must be one of {legal}; not {name!r}")


def float_codec(dtype: torch.dtype) -> Codec:
    """Return the codec that keeps tensors of a floating-point `dtype` as they are."""
    for codec in CODECS.values():
        if isinstance(codec, FloatCodec) and codec.dtype == dtype:
            return codec
    raise ValueError(f"dtype must be float32, bfloat16 or float16, not {dtype}")


class Coded(native.Accelerated):
    """One tensor, stored by a codec.

    Attributes:
        codec: how it is stored.
        shape: the shape of the values.
    """

    def __init__(self, codec: Codec, shape: Sequence[int], parts: Parts) -> None:
        """Take over `parts`.

        Raises:
            ValueError: if a part is missing, unknown, or has another shape or dtype.
        """
        super().__init__()
        self.codec = codec
        self.shape = tuple(shape)
        layout = codec.layout(self.shape)
        if parts.keys() != layout.keys():
            raise ValueError(f"{codec.name} has the parts {sorted(layout)}, not {sorted(parts)}")
        for name, expected in layout.items():
            part = parts[name]
            if (tuple(part.shape), part.dtype) != expected:
                raise ValueError(
                    f"{name} must be {expected.dtype} {list(expected.shape)}, not {part.dtype} {list(part.shape)}"
                )
            self.register_buffer(name, part)

    @cached_property
    def kernel(self) -> "native.Matrix | None":
        """The same matrix for `compressor.runtime.native`, or None where that cannot multiply by it."""
        return self.codec.kernel(self.parts(), self.shape[-1]) if len(self.shape) == 2 else None

    @classmethod
    def encode(cls, codec: Codec, values: Tensor) -> "Coded":
        """Store `values`; raises ValueError where the codec cannot hold them."""
        return cls(codec, values.shape, codec.encode(values))

    def parts(self) -> dict[str, Tensor]:
        """Return the stored tensors by name."""
        return {name: part for name, part in self._buffers.items() if part is not None}

    @property
    def num_bytes(self) -> int:
        """Bytes that the stored tensors occupy."""
        return sum(part.nbytes for part in self.parts().values())

    def decode(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the values."""
        return self.codec.decode(self.parts(), self.shape[-1] if self.shape else 1, dtype)

    def take(self, ids: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return decode()[ids] [*ids, ...], decoding only the rows asked for."""
        rows = {name: part[ids] for name, part in self.parts().items()}
        return self.codec.decode(rows, self.shape[-1], dtype)

    def linear(self, x: Tensor) -> Tensor:
        """Return x @ W.T [..., m] for a stored matrix W [m, n] and x [..., n]."""
        if self.kernel is not None and native.takes(x):
            return native.linear(x, self.kernel)
        return self.codec.linear(self.parts(), x)

    def runnable(self) -> "Coded":
        """Return itself, or its values in fp32 where only a kernel that is not here would multiply by it."""
        kernel_only = isinstance(self.codec, GroupCodec) and self.codec.has_kernel(self.shape[-1])
        return self.recoded(CODECS["fp32"]) if kernel_only and self.kernel is None else self

    def trainable(self) -> "Coded":
        """Return the same values as float parameters, see `Latent`."""
        return Latent(self)

    def sealed(self) -> "Coded":
        """Return the values as they are stored."""
        return self

    def recoded(self, codec: Codec) -> "Coded":
        """Return the same values in another codec (itself if it is that one already)."""
        return self if codec.name == self.codec.name else Coded.encode(codec, self.decode())


class Latent(Coded):
    """A coded tensor while it is trained: float parameters, rounded by the codec on every use.

    The rounding passes gradients straight through. The scales and zeros of a GroupCodec are parameters of their
    own, whose gradient is that of learned step sizes (Esser et al., arXiv 1902.08153, section 2.1); values that are
    clipped get none.

    Attributes:
        values: what is rounded.
    """

    def __init__(self, coded: Coded) -> None:
        nn.Module.__init__(self)
        self.codec = coded.codec
        self.shape = coded.shape
        self.values = nn.Parameter(coded.decode().clone())  # fp32 decodes to itself
        if isinstance(coded.codec, GroupCodec):
            parts = {name: part.float() for name, part in coded.parts().items()}
            self.scale = nn.Parameter(parts["scale"])
            self.zero = nn.Parameter(parts["zero"]) if coded.codec.zero_point else None

    @cached_property
    def kernel(self) -> None:
        return None

    def decode(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return self._rounded(slice(None)).to(dtype)

    def take(self, ids: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return self._rounded(ids).to(dtype)

    def linear(self, x: Tensor) -> Tensor:
        return F.linear(x, self.decode(x.dtype))

    def sealed(self) -> Coded:
        if not isinstance(self.codec, GroupCodec):
            return Coded.encode(self.codec, self.values.detach())
        zero = self.scale if self.zero is None else self.zero
        parts = self.codec.encode_with(self.values.detach(), self.scale.detach().clamp_min(0), zero.detach())
        return Coded(self.codec, self.shape, parts)

    def _rounded(self, rows: Tensor | slice) -> Tensor:
        values = self.values[rows]
        if isinstance(self.codec, GroupCodec):
            return self.codec.round_through(values, self.scale[rows], None if self.zero is None else self.zero[rows])
        if isinstance(self.codec, FloatCodec):
            return values
        with torch.no_grad():
            change = self.codec.decode(self.codec.encode(values), values.shape[-1], values.dtype) - values
        return values + change
