"""1 to 4 bits a value, by a trellis: neighbours share bits, so that each has the choice of 256 levels.

Bit-shift trellis codes as in QTIP (Tseng et al., arXiv 2406.11235, section 3.1), along the rows, so that a column can
be rounded at once with the feedback of GPTQ, and closed after 16 rows, which costs no bits and lets every 16 rows be
read by themselves. A row's level is that of a window of 8 bits: its own code, lowest, and those of the rows behind it;
the first of the 16 follows the last. Rows have one bf16 scale.
"""

from math import prod

import numpy as np
import torch
from torch import Tensor

from compressor.artifact.layouts import integers_named
from compressor.codecs._trellis import search
from compressor.codecs.base import MOST_BF16, Codec, Grid, Parts, finite
from compressor.codecs.groups import pack, unpack
from compressor.runtime._decoder import LANES, TRELLIS_LEVELS

DEVIATIONS = {1: 58.03, 2: 45.79, 3: 39.39, 4: 35.89}  # levels of a standard deviation, for which they were made
REFIT_ROWS = 2048  # whose products exist in fp64 at a time
LEAST_WEIGHT = 1e-4  # of a row, of the largest: the best of its 16 rows does not get all the bits


class TrellisCodec(Codec):
    """Codes of a trellis with one scale per row.

    Attributes:
        bits: per value.
    """

    row_by_row = False
    codes_stay = True

    def __init__(self, bits: int) -> None:
        self.name = f"tr{bits}"
        integers_named(self.name)  # refuses other bits
        self.bits = bits
        self._levels = np.frombuffer(TRELLIS_LEVELS[bits - 1], np.uint8).astype(np.float32) - 128

    def encode(self, values: Tensor) -> dict[str, Tensor]:
        self.layout(values.shape)
        matrices = finite(values, self.name)
        rows = values.shape[-2] if values.ndim > 1 else 1
        matrices = matrices.reshape(prod(values.shape[:-2]), rows, values.shape[-1])
        codes, scales = torch.empty(matrices.shape, dtype=torch.uint8), torch.empty(*matrices.shape[:-1], 1)
        for matrix, code, scale in zip(matrices, codes, scales, strict=True):
            first = self.first_scale(matrix)
            found, rounded = self.search((matrix / _divisor(first)).T.contiguous(), _weights(first))
            largest = _divisor(matrix.abs().amax(-1, keepdim=True)).double()
            code[:], scale[:] = found.T, _best_scale(matrix / largest, rounded.T, rounded.T) * largest
        return self.packed(codes.view(values.shape), scales.view(*values.shape[:-1], 1))

    def packed(self, codes: Tensor, scale: Tensor) -> dict[str, Tensor]:
        """Return the parts of codes [..., n] with a scale [..., 1]."""
        stored = scale.clamp(-MOST_BF16 / 128, MOST_BF16 / 128).bfloat16()
        return {"codes": pack(codes.to(torch.int64), self.bits), "scale": stored}

    def first_scale(self, matrix: Tensor) -> Tensor:
        """Return scales [n, 1] for which rows [n, k] have the deviation that the levels are made for."""
        largest = matrix.abs().amax(-1, keepdim=True)
        relative = matrix / _divisor(largest)
        return largest * (relative.square().mean(-1, keepdim=True).sqrt() / DEVIATIONS[self.bits])

    def search(self, columns: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return the codes and the levels, fp32, of columns [k, n] in units of levels, with rows' weights [n]."""
        codes, rounded = torch.empty(columns.shape, dtype=torch.uint8), torch.empty(columns.shape)
        if columns.numel():
            search(
                columns.numpy(),
                weights.numpy(),
                levels=self._levels,
                codes=codes.numpy(),
                rounded=rounded.numpy(),
                bits=self.bits,
                threads=torch.get_num_threads(),
            )
        return codes, rounded

    def decode(self, parts: Parts, columns: int, dtype: torch.dtype) -> Tensor:
        codes = unpack(parts["codes"], self.bits)[..., :columns]
        own = codes if codes.ndim > 1 else codes.unsqueeze(0)
        rows = own.shape[-2]
        padded = torch.nn.functional.pad(own, (0, 0, 0, -rows % LANES)).unflatten(-2, (-1, LANES))
        levels = self._levels_of(padded).flatten(-3, -2)[..., :rows, :].view(codes.shape)
        return levels.to(dtype) * parts["scale"].to(dtype)

    def take(self, parts: Parts, ids: Tensor, columns: int, dtype: torch.dtype) -> Tensor:
        rows = len(parts["codes"])
        near = ids.unsqueeze(-1) // LANES * LANES + torch.arange(LANES)  # [*ids, 16]
        codes = unpack(parts["codes"][near.clamp_max(rows - 1)], self.bits)[..., :columns]
        levels = self._levels_of(torch.where((near < rows).unsqueeze(-1), codes, 0))  # [*ids, 16, columns]
        lane = (ids % LANES).view(*ids.shape, 1, 1).expand(*ids.shape, 1, columns)
        return levels.gather(-2, lane).squeeze(-2).to(dtype) * parts["scale"][ids].to(dtype)

    def _levels_of(self, codes: Tensor) -> Tensor:
        """Return the levels of closed paths [..., 16, columns]."""
        return torch.from_numpy(self._levels)[windows(codes, self.bits)]

    def grid(self, weight: Tensor, row_weights: Tensor | None = None) -> Grid:
        return _TrellisGrid(self, weight, row_weights)


class _TrellisGrid(Grid):
    """Levels that depend on those of the rows beside them: a column is rounded as a whole."""

    def __init__(self, codec: TrellisCodec, weight: Tensor, row_weights: Tensor | None) -> None:
        scale = codec.first_scale(weight)
        super().__init__(scale, torch.zeros_like(scale), weight.shape[1], -128, 128)
        self._codec = codec
        self._weights, self._divisor = _weights(scale, row_weights), _divisor(scale[:, 0])
        self._codes = torch.zeros(weight.shape[1], weight.shape[0], dtype=torch.uint8)

    def round(self, values: Tensor, column: int) -> Tensor:
        codes, rounded = self._codec.search((values / self._divisor).unsqueeze(0), self._weights)
        self._codes[column] = codes[0]
        return rounded[0] * self.scale[:, 0]

    def refit(self, weight: Tensor, rounded: Tensor, moment: Tensor) -> Tensor:
        known, factors = moment.double(), []
        for target, levels in zip(weight.split(REFIT_ROWS), rounded.split(REFIT_ROWS), strict=True):
            seen = levels.double() @ known
            silent = ~((seen * levels.double()).sum(1, keepdim=True) > 0)  # rows whose products are all zeros
            factors.append(_best_scale(target, levels, torch.where(silent, levels.double(), seen)).float())
        factor = torch.cat(factors)
        self.scale = self.scale * factor
        return rounded * factor

    def parts(self, rounded: Tensor, unit: Tensor) -> dict[str, Tensor]:
        return self._codec.packed(self._codes.T, self.scale * unit)


def windows(codes: Tensor, bits: int) -> Tensor:
    """Return the windows of closed paths of codes [..., 16, columns]."""
    found = torch.zeros_like(codes)
    for step in range(-(-8 // bits)):
        found |= codes.roll(-step, -2) << step * bits
    return found & 255


def _best_scale(matrix: Tensor, levels: Tensor, seen: Tensor) -> Tensor:
    """Return the scales [n, 1], fp64, of levels [n, k] with the least error to a matrix, of which `seen` = levels M."""
    fitted, own = (seen.double() * side.double() for side in (matrix, levels))
    total = own.sum(-1, keepdim=True)
    return fitted.sum(-1, keepdim=True) / torch.where(total > 0, total, 1)


def _weights(scale: Tensor, row_weights: Tensor | None = None) -> Tensor:
    """Return what rows' errors in units of their scales [n, 1] weigh [n]: at most 1."""
    weights = (scale / _divisor(scale.abs().max() if scale.numel() else scale)).square().squeeze(-1)
    if row_weights is not None:
        weights = weights * row_weights
    most = weights.max() if weights.numel() else weights
    return (weights / _divisor(most)).clamp_min(LEAST_WEIGHT).float().contiguous()


def _divisor(size: Tensor) -> Tensor:
    return torch.where(size > 0, size, 1)
