"""The kernels of compressor/kernels, where they were built and the CPU runs them.

They multiply by 8- and 4-bit codes as these are stored, so that they are never copied. Activations are
rounded to 16 bits with one step per row, which is finer than bf16, and added up exactly: a row of the result is
bitwise the same in any batch, with any number of threads and on any of these CPUs.
"""

from typing import Any, NamedTuple

import torch  # first: it loads the OpenMP runtime whose threads the kernels share
from numpy.typing import NDArray
from torch import Tensor, nn

try:
    from compressor import _kernels
    from compressor._kernels import Block as Block
    from compressor._kernels import Matrix as Matrix
    from compressor._kernels import Norm as Norm
    from compressor._kernels import Stack as Stack
except ImportError:  # not built, or built for another platform
    INSTRUCTIONS: tuple[str, ...] = ()
    ACTIVATIONS: tuple[str, ...] = ()
else:
    INSTRUCTIONS, ACTIVATIONS = _kernels.INSTRUCTIONS, _kernels.ACTIVATIONS
AVAILABLE = bool(INSTRUCTIONS)


class Accelerated(nn.Module):
    """A module whose `kernel` views its tensors; a copy of it, or another process, makes a new one."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "kernel"}


def matrix(codes: Tensor, scale: Tensor) -> "Matrix | None":
    """Return a matrix [n, k] for the kernels, or None where they cannot take it.

    Args:
        codes: int8 [n, k], or two 4-bit codes around 7.5 a byte, uint8 [n, k / 2].
        scale: bf16 [n, groups]; one group for 8 bits, groups of a multiple of `_kernels.INT4_COLUMNS` for 4.
    """
    if not AVAILABLE or codes.dim() != 2 or not codes.numel() or not codes.is_contiguous():
        return None
    if codes.dtype is torch.int8 and codes.shape[1] % _kernels.INT8_COLUMNS:
        return None
    return Matrix(codes=array(codes), scale=array(scale.contiguous()))


def with_bias(weight: "Matrix", bias: Tensor) -> "Matrix":
    """Return the same matrix with a bias [n], fp32."""
    return weight.with_bias(array(bias))


def norm(weight: Tensor, bias: Tensor, epsilon: float) -> "Norm":
    """Return a LayerNorm with weight and bias [k], fp32, for the kernels."""
    return Norm(weight=array(weight), bias=array(bias), epsilon=epsilon)


def takes(x: Tensor) -> bool:
    """Return whether the kernels multiply `x`; they have no derivative."""
    return x.dtype is torch.float32 and not (x.requires_grad and torch.is_grad_enabled())


def linear(
    x: Tensor,
    weight: "Matrix",
    *,
    norm: "Norm | None" = None,
    activation: str | None = None,
    residual: Tensor | None = None,
    instructions: str | None = None,
) -> Tensor:
    """Return residual + activation(norm(x) W^T + bias) [..., n], fp32.

    Args:
        x: [..., k], fp32.
        weight: W [n, k] and its bias.
        norm: applied first.
        activation: one of `ACTIVATIONS`, or none.
        residual: [..., n].
        instructions: which of `INSTRUCTIONS` multiply; the last by default.
    """
    out = x.new_empty((*x.shape[:-1], weight.shape[0]))
    weight.linear(
        array(x.contiguous()),
        array(out),
        norm=norm,
        activation=activation,
        residual=None if residual is None else array(residual.contiguous()),
        threads=_threads(),
        instructions=instructions,
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


def lookup(table: Table, x: Tensor, gradient: Tensor | None = None) -> Tensor:
    """Return f(x) for x in bf16, or f'(x) times `gradient` (bf16, too)."""
    x = x.contiguous()
    out = torch.empty_like(x)
    _kernels.lookup(
        array(x),
        array(out),
        values=array(table.values),
        slopes=array(table.slopes),
        gradient=None if gradient is None else array(gradient.contiguous()),
        threads=_threads(),
    )
    return out


class TokenPositions(NamedTuple):
    """Where new tokens stand in a KV cache, contiguous; the same for all layers.

    Attributes:
        slots: of the KV cache [N], int64.
        positions: in the slot [N], int64; those of one slot ascend by one, from its length on.
    """

    slots: Tensor
    positions: Tensor


def attends(size: int) -> bool:
    """Return whether `attention` takes heads of `size` values."""
    return AVAILABLE and size % _kernels.HEAD_VALUES == 0


def attention(qkv: Tensor, keys: Tensor, values: Tensor, at: TokenPositions, layer: int, scale: float) -> Tensor:
    """Append new tokens to their slots and return their attention to these [N, D], fp32.

    Args:
        qkv: query, key and value of the new tokens [N, 3 D], fp32 and contiguous.
        keys: of all layers [L, slots, H, capacity, D / H]; changed in place.
        values: likewise.
        at: where the tokens stand.
        layer: whose keys and values.
        scale: of the attention scores.
    """
    out = qkv.new_empty((qkv.shape[0], qkv.shape[1] // 3))
    _kernels.attention(array(qkv), array(out), **_cache(keys, values, at), layer=layer, scale=scale, threads=_threads())
    return out


def run(stack: "Stack", x: Tensor, keys: Tensor, values: Tensor, at: TokenPositions) -> Tensor:
    """Append new tokens to their slots and return what the last block makes of them [N, D], fp32.

    Args:
        stack: all blocks of a decoder.
        x: the tokens' embeddings [N, D], fp32.
        keys: of all layers [L, slots, H, capacity, D / H]; changed in place.
        values: likewise.
        at: where the tokens stand.
    """
    out = x.clone(memory_format=torch.contiguous_format)
    stack.run(array(out), **_cache(keys, values, at), threads=_threads())
    return out


def _cache(keys: Tensor, values: Tensor, at: TokenPositions) -> dict[str, NDArray[Any]]:
    tensors = {"keys": keys, "values": values, "slots": at.slots, "positions": at.positions}
    return {name: array(tensor) for name, tensor in tensors.items()}


def array(tensor: Tensor) -> NDArray[Any]:
    """Return a view of a tensor, of its bits where it is bf16, which numpy does not know."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    view: NDArray[Any] = (tensor.view(torch.uint16) if tensor.dtype is torch.bfloat16 else tensor).numpy()
    return view


def _threads() -> int:
    return min(torch.get_num_threads(), _kernels.MAX_THREADS)
