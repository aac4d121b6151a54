"""What every codec is."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from compressor.artifact.layouts import Part, codec_layout

Parts = Mapping[str, Tensor]
MOST_FP32, MOST_BF16 = torch.finfo(torch.float32).max, torch.finfo(torch.bfloat16).max


class Codec(ABC):
    """One way to store the values of a tensor.

    Laws: `layout(x.shape)` describes `encode(x)`; encoding row by row gives the rows of the encoding, if it is
    `row_by_row`.

    Attributes:
        name: by which `codec_named` finds it.
        is_float: whether it is a floating-point dtype, which has no grid.
        row_by_row: whether every row is stored by itself.
        codes_stay: whether only scales are trained.
        is_rotated: whether columns are rotated before they are coded.
    """

    name: str
    is_float: ClassVar[bool] = False
    row_by_row: bool = True
    codes_stay: bool = False
    is_rotated: ClassVar[bool] = False

    def layout(self, shape: Sequence[int]) -> dict[str, Part]:
        """Return the parts that a tensor of `shape` is stored as."""
        return codec_layout(self.name, shape)

    @abstractmethod
    def encode(self, values: Tensor) -> dict[str, Tensor]:
        """Return the parts of `values` [..., n], in any float dtype and finite."""

    @abstractmethod
    def decode(self, parts: Parts, columns: int, dtype: torch.dtype) -> Tensor:
        """Return the values [..., columns]."""

    def take(self, parts: Parts, ids: Tensor, columns: int, dtype: torch.dtype) -> Tensor:
        """Return decode(parts)[ids] [*ids, columns], decoding only the rows asked for."""
        return self.decode({name: part[ids] for name, part in parts.items()}, columns, dtype)

    def num_bytes(self, shape: Sequence[int]) -> int:
        """Return what the parts of a tensor of `shape` occupy."""
        return sum(part.num_bytes for part in self.layout(shape).values())

    def grid(self, weight: Tensor, row_weights: Tensor | None = None) -> "Grid":
        """Return the levels that values of `weight` [out, in], as it is `rotated`, are rounded to.

        Args:
            weight: what is rounded.
            row_weights: of the rows' squared errors [out]; equal if left out.

        Raises:
            ValueError: if it has none.
        """
        raise ValueError(f"codec must be of integers, not {self.name!r}")

    def rotated(self, weight: Tensor) -> Tensor:
        """Return rows [..., n] as their codes see them."""
        return weight

    def unrotated(self, weight: Tensor) -> Tensor:
        """Return the rows that are so `rotated`."""
        return weight

    def latent(self, parts: Parts) -> dict[str, Tensor]:
        """Return what is trained besides the values, in fp32, by the names of its parts."""
        return {}

    def round_through(self, values: Tensor, latent: Parts) -> Tensor:
        """Return decode(encode_trained(values, latent)), differentiable in all of them."""
        with torch.no_grad():
            change = self.decode(self.encode(values), values.shape[-1], values.dtype) - values
        return values + change

    def encode_trained(self, values: Tensor, latent: Parts) -> dict[str, Tensor]:
        """Return the parts of trained `values` [..., n]."""
        return self.encode(values)


class Grid(ABC):
    """The levels that every value of a matrix [out, in] may take, one scale and zero per group of a row.

    Attributes:
        scale, zero: [out, groups], fp32.
        group: values per scale.
        lowest, highest: codes.
        renews: whether the levels of a group may be found anew after the columns before it were rounded.
    """

    renews: ClassVar[bool] = False

    def __init__(self, scale: Tensor, zero: Tensor, group: int, lowest: int, highest: int) -> None:
        self.scale, self.zero = scale, zero
        self.group, self.lowest, self.highest = group, lowest, highest

    def renew(self, column: int, weight: Tensor) -> None:
        """Find the levels of the group that begins at `column` anew, for weights [out, in] that have moved."""
        raise NotImplementedError

    def round(self, values: Tensor, column: int) -> Tensor:
        """Return the levels nearest to the values [out] of a column."""
        scale, zero = self.scale[:, column // self.group], self.zero[:, column // self.group]
        codes = torch.round((values - zero) / torch.where(scale > 0, scale, 1))
        return codes.clamp(self.lowest, self.highest) * scale + zero

    def refit(self, weight: Tensor, rounded: Tensor, moment: Tensor) -> Tensor:
        """Return `rounded` [out, in] after making its scales those with the least error to `weight`, if they move.

        Args:
            weight: what was rounded, as it is `rotated`.
            rounded: levels.
            moment: the second moment of the inputs, rotated.
        """
        return rounded

    @abstractmethod
    def parts(self, rounded: Tensor, unit: Tensor) -> dict[str, Tensor]:
        """Return the codec's parts of values [out, in] that are levels, in units [out, 1]."""


def finite(values: Tensor, codec: str) -> Tensor:
    """Return `values` in fp32; raises ValueError if one is not finite."""
    if not torch.isfinite(values).all():
        raise ValueError(f"values must be finite to be stored as {codec}")
    return values.float()


def largest_step(steps: float) -> float:
    """Return the largest bf16 of which so many are within the range of fp32."""
    return float(torch.tensor(MOST_FP32 / steps * (1 - 2**-8)).bfloat16())


def bf16(values: Tensor) -> Tensor:
    """Round fp32 values to bf16, and keep them in fp32."""
    return values.bfloat16().float()


def power_of_2(sizes: Tensor) -> Tensor:
    """Return a power of 2 within a factor of 2 of each of the `sizes` in fp32, and 2**-126 for 0 and denormals."""
    exponents = sizes.contiguous().view(torch.int32) & 0x7F800000
    return exponents.view(torch.float32).clamp(2.0**-126, 2.0**126)
