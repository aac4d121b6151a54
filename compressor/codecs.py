"""Codecs: how the numbers of one tensor of any shape are stored.

A codec turns values [..., n] into named parts, all of which share the leading axes of the values.
So a row can be taken from the parts before anything is decoded.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Parts = Mapping[str, Tensor]

# The int8 kernel reads past the end of rows that are not a multiple of its vectors (seen to crash at 20).
KERNEL_COLUMNS = 32


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
    def decode(self, parts: Parts, dtype: torch.dtype) -> Tensor:
        """Return the values [..., n]."""

    def linear(self, parts: Parts, x: Tensor) -> Tensor:
        """Return x @ W.T [..., m] for a stored matrix W [m, n] and x [..., n]."""
        return F.linear(x, self.decode(parts, x.dtype))


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

    def decode(self, parts: Parts, dtype: torch.dtype) -> Tensor:
        return parts["values"].to(dtype)


class Int8Codec(Codec):
    """Symmetric int8 with one bf16 scale per row, a row being everything along the last axis.

    The scale is rounded up to bf16 before the codes are computed, so that no code is clipped and
    the stored scale is the one that the low-bit kernel multiplies by.
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
        values = values.float()
        if not torch.isfinite(values).all():
            raise ValueError("values must be finite to be stored as int8")
        scale = _bf16_not_below(values.abs().amax(-1, keepdim=True) / 127)
        step = torch.where(scale > 0, scale, 1).float()
        codes = torch.round(values / step).clamp(-127, 127).to(torch.int8)
        return {"codes": codes.contiguous(), "scale": scale}

    def decode(self, parts: Parts, dtype: torch.dtype) -> Tensor:
        return parts["codes"].to(dtype) * parts["scale"].to(dtype)

    def linear(self, parts: Parts, x: Tensor) -> Tensor:
        """Multiply through torch's weight-only int8 kernel, whose activations are bf16."""
        if x.requires_grad or x.shape[-1] % KERNEL_COLUMNS:  # the kernel has no derivative and no remainder loop
            return super().linear(parts, x)
        flat = x.reshape(-1, x.shape[-1]).bfloat16()  # [rows, n]
        y = torch._weight_int8pack_mm(flat, parts["codes"], parts["scale"].squeeze(-1))
        return y.to(x.dtype).reshape(*x.shape[:-1], -1)


def _range(dtype: torch.dtype) -> str:
    return f"at most {torch.finfo(dtype).max:g} in magnitude"


def _bf16_not_below(values: Tensor) -> Tensor:
    """Round non-negative fp32 values up to bf16."""
    rounded = values.to(torch.bfloat16)
    bits = rounded.view(torch.int16)
    return torch.where(rounded.float() < values, bits + 1, bits).view(torch.bfloat16)


CODECS: dict[str, Codec] = {
    "fp32": FloatCodec("fp32", torch.float32),
    "bf16": FloatCodec("bf16", torch.bfloat16),
    "fp16": FloatCodec("fp16", torch.float16),
    "int8": Int8Codec(),
}


def codec_named(name: str) -> Codec:
    """Return the codec called `name`.

    Raises:
        ValueError: naming the legal codecs.
    """
    if name not in CODECS:
        raise ValueError(f"codec must be one of {', '.join(CODECS)}, not {name!r}")
    return CODECS[name]


def float_codec(dtype: torch.dtype) -> Codec:
    """Return the codec that keeps tensors of a floating-point `dtype` as they are."""
    for codec in CODECS.values():
        if isinstance(codec, FloatCodec) and codec.dtype == dtype:
            return codec
    raise ValueError(f"dtype must be float32, bfloat16 or float16, not {dtype}")


class Coded(nn.Module):
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
        return self.codec.decode(self.parts(), dtype)

    def take(self, ids: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return decode()[ids] [*ids, ...], decoding only the rows asked for."""
        return self.codec.decode({name: part[ids] for name, part in self.parts().items()}, dtype)

    def linear(self, x: Tensor) -> Tensor:
        """Return x @ W.T [..., m] for a stored matrix W [m, n] and x [..., n]."""
        return self.codec.linear(self.parts(), x)

    def recoded(self, codec: Codec) -> "Coded":
        """Return the same values in another codec (itself if it is that one already)."""
        return self if codec is self.codec else Coded.encode(codec, self.decode())
