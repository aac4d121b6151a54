"""The extension module built from compressor/kernels: arrays in, results in place.

Arrays are whatever has the buffer protocol, C-contiguous, aligned and of the dtype named here; bf16 are their bits as
uint16. Objects hold the memory that they were made from. All calls raise TypeError or ValueError naming the argument
and what is legal, and give the GIL back while they compute: nothing may change their arguments meanwhile.
"""

from collections.abc import Iterable
from typing import Any, TypeAlias, final

from numpy.typing import NDArray
from typing_extensions import Buffer

Array: TypeAlias = Buffer | NDArray[Any]  # numpy's arrays are buffers, which its types say from Python 3.12 on

ACTIVATIONS: tuple[str, ...]
INSTRUCTIONS: tuple[str, ...]  # that this CPU has, the best last; empty where no kernel runs
INT8_COLUMNS: int  # rows of 8-bit codes are multiples of
INT4_COLUMNS: int  # every group of 4-bit codes is a multiple of
HEAD_VALUES: int  # every head is a multiple of
MAX_THREADS: int
SERIAL_WORK: int  # multiply-adds up to which one thread does them all

@final
class Matrix:
    """W [n, k], and the bias that is added to its products: none at first.

    `codes` are int8 [n, k] with a `scale` per row, bf16 [n, 1], or two 4-bit codes around 7.5 a byte, the low one
    first, uint8 [n, k / 2] with scales [n, groups].
    """

    def __new__(cls, *, codes: Array, scale: Array) -> Matrix: ...
    @property
    def shape(self) -> tuple[int, int]: ...
    def with_bias(self, bias: Array | None, /) -> Matrix:
        """Return the same matrix with another bias, fp32 [n]."""

    def linear(
        self,
        x: Array,
        out: Array,
        *,
        norm: Norm | None = None,
        activation: str | None = None,
        residual: Array | None = None,
        threads: int = 1,
        instructions: str | None = None,
    ) -> None:
        """Write residual + activation(norm(x) W^T + bias) [..., n] to `out`, which overlaps neither; x is [..., k]."""

@final
class Norm:
    """A LayerNorm with `weight` and `bias` fp32 [k]."""

    def __new__(cls, *, weight: Array, bias: Array, epsilon: float) -> Norm: ...

@final
class Block:
    """One block of a decoder, whose matrices have biases; `scale` is that of the attention."""

    def __new__(
        cls, *, ln_1: Norm, c_attn: Matrix, c_proj: Matrix, ln_2: Norm, c_fc: Matrix, mlp_c_proj: Matrix, scale: float
    ) -> Block: ...

@final
class Stack:
    """All blocks of a decoder, of the same sizes."""

    def __new__(cls, blocks: Iterable[Block], *, activation: str | None = None) -> Stack: ...
    def run(self, x: Array, *, keys: Array, values: Array, slots: Array, positions: Array, threads: int) -> None:
        """Append tokens to their slots, see `attention`, and replace x [rows, D] by what the last block makes of it."""

def attention(
    qkv: Array,
    out: Array,
    *,
    keys: Array,
    values: Array,
    slots: Array,
    positions: Array,
    layer: int,
    scale: float,
    threads: int,
) -> None:
    """Append tokens qkv [rows, 3 D] to their slots in one layer and write their attention to these to out [rows, D].

    `keys` and `values` are [layers, slots, H, capacity, D / H] in fp32, fp16 or bf16. `slots` and `positions`, int64
    [rows], say where the tokens stand.
    """

def lookup(x: Array, out: Array, *, values: Array, slopes: Array, gradient: Array | None, threads: int) -> None:
    """Write f(x), or f'(x) times `gradient`, to `out`, all bf16 of any shape.

    `values` are f, bf16, and `slopes` f', fp32, of all 65,536 bf16 in the order of their bits.
    """
