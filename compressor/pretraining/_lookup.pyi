"""The extension module built from lookup.c."""

from compressor.runtime._decoder import Array

def lookup(x: Array, out: Array, *, values: Array, slopes: Array, gradient: Array | None, threads: int) -> None:
    """Write f(x), or f'(x) times `gradient`, to `out`, all bf16 as uint16, C-contiguous and of any shape.

    `values` are f, bf16, and `slopes` f', fp32, of all 65,536 bf16 in the order of their bits.

    Raises:
        TypeError, ValueError: naming the argument and what is legal.
    """
