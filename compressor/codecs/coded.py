"""One stored tensor, and the same while it is trained."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compressor.codecs.base import Codec, Parts, bf16
from compressor.tensors import check_part


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
            check_part(name, part, expected)
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
        return self.codec.decode(self.parts(), self.shape[-1] if self.shape else 1, dtype)

    def take(self, ids: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return decode()[ids] [*ids, ...], decoding only the rows asked for."""
        return self.codec.take(self.parts(), ids, self.shape[-1], dtype)

    def trainable(self) -> "Coded":
        """Return the same values as float parameters, see `Latent` and `Scaled`."""
        return Scaled(self) if self.codec.codes_stay else Latent(self)

    def quantized(self) -> "Coded":
        """Return the values as they are stored."""
        return self

    def recoded(self, codec: Codec) -> "Coded":
        """Return the same values in another codec (itself if it is that one already)."""
        return self if codec.name == self.codec.name else Coded.encode(codec, self.decode())


class Latent(Coded):
    """A coded tensor while it is trained: float parameters, rounded by the codec on every use.

    The rounding passes gradients straight through, see `Codec.round_through`.

    Attributes:
        values: what is rounded.
    """

    def __init__(self, coded: Coded) -> None:
        nn.Module.__init__(self)
        self.codec = coded.codec
        self.shape = coded.shape
        self.values = nn.Parameter(coded.decode().clone())  # fp32 decodes to itself
        for name, part in coded.codec.latent(coded.parts()).items():
            self.register_parameter(name, nn.Parameter(part))

    def decode(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return self._rounded(slice(None)).to(dtype)

    def take(self, ids: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return self._rounded(ids).to(dtype)

    def quantized(self) -> Coded:
        latent = {name: part.detach() for name, part in self._others().items()}
        return Coded(self.codec, self.shape, self.codec.encode_trained(self.values.detach(), latent))

    def _rounded(self, rows: Tensor | slice) -> Tensor:
        return self.codec.round_through(self.values[rows], {n: part[rows] for n, part in self._others().items()})

    def _others(self) -> dict[str, Tensor]:
        return {name: part for name, part in self._parameters.items() if name != "values" and part is not None}


class Scaled(Coded):
    """The same for codes that are searched for: they stay, and the rows' scales alone are trained.

    Attributes:
        levels: the values [n, k] for scales of 1.
        scale: of each row.
    """

    levels: Tensor

    def __init__(self, coded: Coded) -> None:
        nn.Module.__init__(self)
        self.codec = coded.codec
        self.shape = coded.shape
        parts = coded.parts()
        ones = torch.ones_like(parts["scale"])
        self.register_buffer("codes", parts["codes"])
        self.register_buffer("levels", coded.codec.decode(parts | {"scale": ones}, self.shape[-1], torch.float32))
        self.scale = nn.Parameter(parts["scale"].float())

    def parts(self) -> dict[str, Tensor]:
        return {"codes": self.get_buffer("codes"), "scale": self.scale.detach().bfloat16()}

    def decode(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return self._scaled(slice(None)).to(dtype)

    def take(self, ids: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return self._scaled(ids).to(dtype)

    def quantized(self) -> Coded:
        return Coded(self.codec, self.shape, self.parts())

    def _scaled(self, rows: Tensor | slice) -> Tensor:
        scale = self.scale[rows]
        return self.levels[rows] * (scale + (bf16(scale.detach()) - scale).detach())
