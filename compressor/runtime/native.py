"""The kernels of compressor/runtime/kernels, where they were built and the CPU runs them.

They multiply by 8- and 4-bit codes as these are stored, so that they are never copied. Activations are
rounded to 16 bits with one step per row, which is finer than bf16, and added up exactly: a row of the result is
bitwise the same in any batch, with any number of threads and on any of these CPUs.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch  # first: it loads the OpenMP runtime whose threads the kernels share
from torch import Tensor

try:
    from compressor.runtime import _kernels
except ImportError:  # not built, or built for another platform
    AVAILABLE, INSTRUCTIONS = False, 0
else:
    AVAILABLE, INSTRUCTIONS = _kernels.supported(), _kernels.instructions()

Activation = Literal["none", "relu", "gelu_new"]
ACTIVATIONS: dict[str, int] = {"none": 0, "relu": 1, "gelu_new": 2}
KV_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
VECTOR = 16  # columns that a kernel multiplies at a time by 8-bit codes
GROUP = 64  # and by 4-bit ones
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
    return columns > 0 and columns % (GROUP * groups) == 0


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
    instructions: int = INSTRUCTIONS,
) -> Tensor:
    """Return residual + activation(norm(x) W^T + bias) [..., n], fp32.

    Args:
        x: [..., k], fp32.
        weight: W [n, k].
        bias: [n].
        norm: weight [k], bias [k] and epsilon of a LayerNorm.
        activation: "none", "relu" or "gelu_new".
        residual: [..., n].
        instructions: which multiply; 0 for AVX2, 1 for AVX-512 VNNI.
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
        *_matrix(weight, bias),
        _address(norm_weight),
        _address(norm_bias),
        _address(residual),
        out.data_ptr(),
        rows,
        ACTIVATIONS[activation],
        threads,
        instructions,
        epsilon,
    )
    return out


class Table(NamedTuple):
    """A function of bf16: all 65,536 of its values and of its derivative's, in the order of their bits.

    Attributes:
        values: bf16 [65536].
        slopes: fp32 [65536].
    """

    values: Tensor
    slopes: Tensor


def looked_up(table: Table, x: Tensor, gradient: Tensor | None = None) -> Tensor:
    """Return f(x) for x in bf16, or f'(x) times `gradient` (bf16, too)."""
    x = x.contiguous()
    gradient = None if gradient is None else gradient.contiguous()
    out = torch.empty_like(x)
    threads = torch.get_num_threads() if x.numel() > SERIAL else 1
    arrays = (x, gradient, table.values, table.slopes, out)
    _kernels.lookup(*(_address(array) for array in arrays), x.numel(), threads)
    return out


class Places(NamedTuple):
    """Where new tokens stand in a KV cache, contiguous; the same for all layers.

    Attributes:
        slots: of the KV cache [N], int64.
        positions: in the slot [N], int64; those of one slot ascend by one, from its length on.
        longest: the largest position.
    """

    slots: Tensor
    positions: Tensor
    longest: int


def attends(size: int, dtype: torch.dtype) -> bool:
    """Return whether `attention` takes heads of `size` values kept as `dtype`."""
    return AVAILABLE and size % 8 == 0 and dtype in KV_DTYPES


def attention(qkv: Tensor, keys: Tensor, values: Tensor, at: Places, scale: float) -> Tensor:
    """Append new tokens to their slots and return their attention to these [N, D], fp32.

    Args:
        qkv: query, key and value of the new tokens [N, 3 D], fp32 and contiguous.
        keys: of one layer [slots, H, capacity, D / H]; changed in place.
        values: likewise.
        at: where the tokens stand; the slots have room.
        scale: of the scores.
    """
    out = qkv.new_empty((qkv.shape[0], qkv.shape[1] // 3))
    _kernels.attention(qkv.data_ptr(), out.data_ptr(), *_attention(keys, values, at), scale)
    return out


class Layer(NamedTuple):
    """One block of a decoder.

    Attributes:
        matrices: weight and bias of c_attn, attn.c_proj, c_fc and mlp.c_proj.
        norms: weight and bias of ln_1 and ln_2.
        scale: of the attention's scores.
    """

    matrices: Sequence[tuple[Codes, Tensor]]
    norms: Sequence[tuple[Tensor, Tensor]]
    scale: float


class Stack:
    """All blocks of a decoder, run by one call."""

    def __init__(self, layers: Sequence[Layer], activation: Activation, epsilon: float) -> None:
        self._layers = tuple(layers)  # what the addresses point to must stay
        self._activation = ACTIVATIONS[activation]
        self._epsilon = epsilon
        self._table = torch.tensor([self._numbers(layer) for layer in layers], dtype=torch.int64)
        self._scales = torch.tensor([layer.scale for layer in layers], dtype=torch.float32)

    @staticmethod
    def _numbers(layer: Layer) -> list[int]:
        numbers = [number for weight, bias in layer.matrices for number in _matrix(weight, bias)]
        return numbers + [tensor.data_ptr() for norm in layer.norms for tensor in norm]

    def run(self, x: Tensor, keys: Tensor, values: Tensor, at: Places) -> Tensor:
        """Append new tokens to their slots and return what the last block makes of them [N, D], fp32.

        Args:
            x: the tokens' embeddings [N, D], fp32.
            keys: of all layers [L, slots, H, capacity, D / H]; changed in place.
            values: likewise.
            at: where the tokens stand; the slots have room.
        """
        out = x.clone(memory_format=torch.contiguous_format)
        if x.numel():
            _kernels.stack(
                self._table.data_ptr(),
                len(self._layers),
                self._scales.data_ptr(),
                self._activation,
                out.data_ptr(),
                keys.stride(0) * keys.itemsize,
                INSTRUCTIONS,
                *_attention(keys[0], values[0], at),
                self._epsilon,
            )
        return out


def _matrix(weight: Codes, bias: Tensor | None) -> tuple[int, ...]:
    codes, scale = weight.codes.data_ptr(), weight.scale.data_ptr()
    return codes, scale, _address(bias), weight.n, weight.k, weight.groups


def _attention(keys: Tensor, values: Tensor, at: Places) -> tuple[int, ...]:
    _, heads, capacity, size = keys.shape
    rows = len(at.slots)
    work = 2 * rows * heads * size * (at.longest + heads * size)  # with the products around it
    return (
        keys.data_ptr(),
        values.data_ptr(),
        at.slots.data_ptr(),
        at.positions.data_ptr(),
        rows,
        heads,
        size,
        capacity,
        KV_DTYPES[keys.dtype],
        torch.get_num_threads() if work > SERIAL else 1,
    )


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
