"""The kernels of compressor/kernels, where they were built and the CPU runs them.

They multiply by 8- and 4-bit codes as these are stored, so a memory-mapped artefact is never copied. Activations are
rounded to 16 bits with one step per row, which is finer than bf16, and added up exactly: a row of the result is
bitwise the same in any batch and with any number of threads.
"""

from typing import Literal, NamedTuple

import torch  # first: it loads the OpenMP runtime whose threads the kernels share
from torch import Tensor

try:
    from compressor import _kernels
except ImportError:  # not built, or built for another platform
    AVAILABLE = False
else:
    AVAILABLE = _kernels.supported()

Activation = Literal["none", "relu", "gelu_new"]
ACTIVATIONS: dict[str, int] = {"none": 0, "relu": 1, "gelu_new": 2}
KV_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
VECTOR = 16  # columns that a kernel multiplies at a time by 8-bit codes
GROUP = 64  # and by 4-bit ones
MOST_GROUPS = 512
SERIAL = 1 << 16  # multiply-adds for which another thread is not worth waking
Norm = tuple[Tensor, Tensor, float]


class Codes(NamedTuple):
    """A matrix [n, k] that the kernels multiply by.

    Attributes:
        codes: int8 [n, k], or two 4-bit codes a byte, low one first [n, k / 2]; contiguous.
        scale: bf16 [n, groups].
        n, k: shape.
        groups: per row of 4-bit codes; 0 for 8 bits.
    """

    codes: Tensor
    scale: Tensor
    n: int
    k: int
    groups: int


def codes8(codes: Tensor, scale: Tensor) -> Codes | None:
    """Return int8 codes [n, k] with scales [n, 1] for the kernels, or None where they cannot take them."""
    if not AVAILABLE or codes.dim() != 2 or codes.shape[1] % VECTOR or not codes.is_contiguous():
        return None
    return Codes(codes, scale.contiguous(), codes.shape[0], codes.shape[1], 0)


def codes4(codes: Tensor, scale: Tensor, columns: int) -> Codes | None:
    """Return 4-bit codes [n, k / 2] around 7.5 with scales [n, groups] for the kernels, or None."""
    groups = scale.shape[-1]
    if not AVAILABLE or codes.dim() != 2 or not takes4(columns, groups) or not codes.is_contiguous():
        return None
    return Codes(codes, scale.contiguous(), codes.shape[0], columns, groups)


def takes4(columns: int, groups: int) -> bool:
    """Return whether the kernels take rows of `columns` 4-bit codes in `groups` groups of equal size."""
    return columns > 0 and columns % (GROUP * groups) == 0 and groups <= MOST_GROUPS


def takes(x: Tensor) -> bool:
    """Return whether the kernels multiply `x`; they have no derivative."""
    return x.dtype is torch.float32 and not (x.requires_grad and torch.is_grad_enabled())


def linear(
    x: Tensor,
    weight: Codes,
    bias: Tensor | None = None,
    *,
    norm: Norm | None = None,
    activation: Activation = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """Return residual + activation(norm(x) W^T + bias) [..., n], fp32.

    Args:
        x: [..., k], fp32.
        weight: W [n, k].
        bias: [n].
        norm: weight [k], bias [k] and epsilon of a LayerNorm.
        activation: "none", "relu" or "gelu_new".
        residual: [..., n].
    """
    x = x.contiguous()
    rows = x.numel() // weight.k
    out = x.new_empty((*x.shape[:-1], weight.n))
    if not rows:
        return out
    norm_weight, norm_bias, epsilon = norm or (None, None, 0.0)
    threads = torch.get_num_threads() if rows * weight.n * weight.k > SERIAL else 1
    _kernels.linear(
        x.data_ptr(),
        weight.codes.data_ptr(),
        weight.scale.data_ptr(),
        _address(bias),
        _address(norm_weight),
        _address(norm_bias),
        _address(residual),
        out.data_ptr(),
        rows,
        weight.n,
        weight.k,
        weight.groups,
        ACTIVATIONS[activation],
        threads,
        epsilon,
    )
    return out


class Slots(NamedTuple):
    """Where the new tokens of one decode step stand; the same for all layers.

    Attributes:
        slots: of the KV cache [B], int64.
        lengths: tokens that each held before [B], int64.
        longest: the largest of them.
    """

    slots: Tensor
    lengths: Tensor
    longest: int


def attends(size: int, dtype: torch.dtype) -> bool:
    """Return whether `attention` takes heads of `size` values kept as `dtype`."""
    return AVAILABLE and size % 8 == 0 and dtype in KV_DTYPES


def attention(qkv: Tensor, keys: Tensor, values: Tensor, at: Slots, scale: float) -> Tensor:
    """Append one token per row to its slot and return its attention to the slot [B, D], fp32.

    Args:
        qkv: query, key and value of the new tokens [B, 3 D], fp32 and contiguous.
        keys: of one layer [slots, H, capacity, D / H]; changed in place.
        values: likewise.
        at: the rows' slots; distinct, and with room.
        scale: of the scores.
    """
    _, heads, capacity, size = keys.shape
    rows = qkv.shape[0]
    out = qkv.new_empty((rows, heads * size))
    work = 2 * rows * heads * size * at.longest
    _kernels.attention(
        qkv.data_ptr(),
        keys.data_ptr(),
        values.data_ptr(),
        at.slots.data_ptr(),
        at.lengths.data_ptr(),
        out.data_ptr(),
        rows,
        heads,
        size,
        capacity,
        KV_DTYPES[keys.dtype],
        torch.get_num_threads() if work > SERIAL else 1,
        scale,
    )
    return out


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
