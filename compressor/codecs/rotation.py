"""Rotations of columns that leave no value much larger than the others, so that few levels store them well.

Each block of columns has its signs turned and is multiplied by a Hadamard matrix of order base * 2^k, base 1, 12
or 20 (QuIP#, arXiv 2402.04396, section 3). It is not divided by the root of the order: W x = (W R^T / block) (R x). The
runtime has the same operations in the same order.
"""

from functools import cache

import numpy as np
import torch
from torch import Tensor

BASES = (1, 12, 20)


@cache
def block_of(columns: int) -> tuple[int, int]:
    """Return the largest block that divides `columns`, and its base."""

    def largest(base: int) -> int:
        block = base
        while columns % (2 * block) == 0:
            block *= 2
        return block

    return max(((largest(base), base) for base in BASES if columns % base == 0), key=lambda found: found[0])


def rotate(values: Tensor) -> Tensor:
    """Return R v for every v of `values` [..., columns]."""
    if values.requires_grad:
        return _turned_while_trained(values, _matrix(values.shape[-1]).transpose(-1, -2))
    block, base = block_of(values.shape[-1])
    size = block // base
    x = (values * _signs(values.shape[-1]).to(values.dtype)).unflatten(-1, (-1, base, size))
    if base > 1:
        x = _times(_hadamard(base), x)
    return _butterflies(x).flatten(-3)


def unrotate(values: Tensor) -> Tensor:
    """Return R^T v, which is the block's size times what `rotate` was given."""
    if values.requires_grad:
        return _turned_while_trained(values, _matrix(values.shape[-1]))
    block, base = block_of(values.shape[-1])
    size = block // base
    x = _butterflies(values.unflatten(-1, (-1, base, size)))
    if base > 1:
        x = _times(_hadamard(base).T, x)
    return x.flatten(-3) * _signs(values.shape[-1]).to(values.dtype)


def rotated_moment(moment: Tensor) -> Tensor:
    """Return the second moment [columns, columns] of R x for that of x, in fp64."""
    return rotate(rotate(moment.double()).T).T


def _turned_while_trained(values: Tensor, matrices: Tensor) -> Tensor:
    """Return every block of columns times its matrix [blocks, block, block]: fewer operations to differentiate."""
    parts = zip(values.chunk(len(matrices), -1), matrices.unbind(), strict=True)
    found: Tensor = torch.cat([part @ matrix for part, matrix in parts], -1)
    return found


@cache
def _matrix(columns: int) -> Tensor:
    """Return R, block by block [columns / block, block, block]."""
    block, _ = block_of(columns)
    units = torch.eye(block).repeat(1, columns // block)  # [block, columns]
    found: Tensor = rotate(units).unflatten(-1, (-1, block)).permute(1, 2, 0).contiguous()
    return found


def _butterflies(x: Tensor) -> Tensor:
    """Multiply the last axis, a power of 2, by a Hadamard matrix."""
    size = x.shape[-1]
    half = size // 2
    while half:
        pairs = x.unflatten(-1, (-1, 2, half))
        first, second = pairs[..., 0, :], pairs[..., 1, :]
        x = torch.stack([first + second, first - second], dim=-2).flatten(-3)
        half //= 2
    return x


def _times(signs: Tensor, x: Tensor) -> Tensor:
    """Return signs [base, base] times x [..., base, size], summed in the order of the columns."""
    signs = signs.to(x.dtype).unsqueeze(-1)
    total = signs[:, 0] * x[..., :1, :]
    for column in range(1, len(signs)):
        total = total + signs[:, column] * x[..., column : column + 1, :]
    return total


@cache
def _hadamard(order: int) -> Tensor:
    """Return Paley's first Hadamard matrix of `order`, whose predecessor is a prime."""
    prime = order - 1
    squares = {i * i % prime for i in range(1, prime)}
    matrix = torch.full((order, order), -1, dtype=torch.int8)
    matrix[0] = 1
    for i in range(1, order):
        for j in range(1, order):
            if i == j or (i - j) % prime in squares:
                matrix[i, j] = 1
    return matrix


@cache
def _signs(columns: int) -> Tensor:
    """Return 1 or -1 for every column: bits of a hash, as good as random."""
    hashed = np.arange(1, columns + 1, dtype=np.uint32)
    hashed = (hashed ^ hashed >> np.uint32(16)) * np.uint32(0x7FEB352D)
    hashed = (hashed ^ hashed >> np.uint32(15)) * np.uint32(0x846CA68B)
    odd = (hashed ^ hashed >> np.uint32(16)) & np.uint32(1)
    return torch.from_numpy(1 - 2 * odd.astype(np.int8))
