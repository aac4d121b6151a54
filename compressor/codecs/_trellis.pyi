"""The extension module built from trellis.c."""

from compressor.runtime._decoder import Array

def search(
    values: Array, weights: Array, *, levels: Array, codes: Array, rounded: Array, bits: int, threads: int
) -> None:
    """Write the codes, uint8, and the levels, fp32, whose weighted squared error to `values` is nearly the least.

    values, codes and rounded are [columns, rows], weights [rows]. Every 16 rows of a column are a closed path: row r
    has the level of the 8 bits that begin with its own code, lowest first, and go on with those of the rows behind it,
    the first of the 16 following the last. Rows that are not there have the code 0. levels [256], fp32.

    Args:
        values: fp32.
        weights: fp32, of the rows' squared errors, at least 0.
        levels: of all windows.
        codes: of `bits` bits.
        rounded: levels.
        bits: 1 to 4.
        threads: that work on it; the result is the same with any.

    Raises:
        TypeError, ValueError: naming the argument and what is legal.
    """
