"""Matrices as they are stored, ready to be multiplied: from an artefact's arrays to objects of `_decoder`. No torch.

A codec's parts and a format's tensors are described in `compressor.artifact.layouts`.
bf16, which numpy does not know, are their bits as uint16.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compressor.artifact.layouts import integers_named
from compressor.artifact.shapes import train_size
from compressor.runtime._decoder import Matrix

if TYPE_CHECKING:
    from compressor.artifact.manifest import Spec

Array = NDArray[Any]
Arrays = Mapping[str, Array]
BYTE_GROUP = 128  # columns; where more have one scale, rows of 8 bits save nothing


def matrix_of(tensors: Arrays, spec: "Spec", activations: int = 16) -> Matrix:
    """Return the matrix that `spec` describes, of exactly these stored tensors; they may be freed afterwards.

    Args:
        tensors: stored ones.
        spec: of the matrix.
        activations: bits that rows of x are rounded to where they meet codes in groups of at most BYTE_GROUP columns:
            16 with one step per row, or 8 with one per group. Other codes always meet 16 bits.

    Raises:
        ValueError: naming what does not fit.
    """
    match spec.format:
        case "dense":
            return coded(_below(tensors, "matrix"), spec.codecs["matrix"], spec.shape[1], activations)
        case "low_rank":
            return _low_rank(tensors, spec, activations)
        case "stacked":
            blocks = [str(k) for k in range(len(spec.inner))]
            return Matrix.stacked([matrix_of(_below(tensors, name), spec.inner[name], activations) for name in blocks])
        case "residual":
            names = ("base", "correction")
            return Matrix.residual(*(matrix_of(_below(tensors, name), spec.inner[name], activations) for name in names))
        case "sparse":
            values = coded(_below(tensors, "values"), spec.codecs["values"], spec.options["kept"])
            columns = tensors["columns.values"].astype(np.int32)
            return Matrix.sparse(values, columns, in_features=spec.shape[1])
        case "token_mps":
            modes, ranks = spec.options["modes"], spec.options["ranks"]
            cores = coded(_below(tensors, "cores"), spec.codecs["cores"], train_size(modes, ranks))
            return Matrix.token_mps(cores, modes=modes, ranks=ranks, in_features=spec.shape[1])
        case "tt_matrix":
            return _tt_matrix(tensors, spec)
    raise ValueError(f"format must be one of compressor.artifact.layouts, not {spec.format!r}")


def coded(parts: Arrays, codec: str, columns: int, activations: int = 16) -> Matrix:
    """Return stored values [n, columns], which meet rows as in `matrix_of`."""
    found = integers_named(codec)
    if found is None:
        return Matrix.floats(parts["values"])
    group, zero = min(found.group or columns, columns), parts.get("zero")
    bits = activations if group <= BYTE_GROUP and not found.trellis else 16
    return Matrix.integers(
        parts["codes"],
        parts["scale"],
        zero,
        bits=found.bits,
        columns=columns,
        group=group,
        activation_bits=bits,
        trellis=found.trellis,
        rotated=found.rotated,
    )


def rows(matrix: Matrix, ids: Array, threads: int = 1) -> NDArray[np.float32]:
    """Return W[ids] [*ids, k] in fp32."""
    out = np.empty((ids.size, matrix.shape[1]), np.float32)
    matrix.rows(np.ascontiguousarray(ids, np.int64).reshape(-1), out, threads=threads)
    return out.reshape(*ids.shape, matrix.shape[1])


def matmul(
    matrix: Matrix, x: NDArray[np.float32], threads: int = 1, instructions: str | None = None
) -> NDArray[np.float32]:
    """Return x @ W.T [..., n] in fp32 for x [..., k]."""
    out = np.empty((*x.shape[:-1], matrix.shape[0]), np.float32)
    matrix.matmul(np.ascontiguousarray(x, np.float32), out, threads=threads, instructions=instructions)
    return out


def vector(parts: Arrays, codec: str, size: int) -> NDArray[np.float32]:
    """Return the values [size] of a stored vector in fp32."""
    return _decoded({name: part[np.newaxis] for name, part in parts.items()}, codec, size).reshape(size)


def _low_rank(tensors: Arrays, spec: "Spec", activations: int) -> Matrix:
    rank, width = spec.options["rank"], {"row_scale": spec.shape[0], "column_offset": spec.shape[1]}
    left = coded(_below(tensors, "left"), spec.codecs["left"], rank, activations)
    right = coded(_below(tensors, "right"), spec.codecs["right"], spec.shape[1], activations)
    vectors = {
        name: vector(_below(tensors, name), spec.codecs[name], size)
        for name, size in width.items()
        if spec.options[name]
    }
    return Matrix.low_rank(left, right, **vectors)


def _tt_matrix(tensors: Arrays, spec: "Spec") -> Matrix:
    in_modes, out_modes, ranks = (spec.options[name] for name in ("in_modes", "out_modes", "ranks"))
    cores = [core(tensors, spec, k) for k in range(len(in_modes))]
    places = None
    if spec.options["permuted"]:
        places = tensors["permutation.values"].astype(np.int32)
        if not np.array_equal(np.sort(places), np.arange(spec.shape[0])):
            raise ValueError(f"permutation must be a permutation of 0 .. {spec.shape[0] - 1}")
    return Matrix.tt_matrix(cores, shape=spec.shape, in_modes=in_modes, out_modes=out_modes, ranks=ranks, places=places)


def core(tensors: Arrays, spec: "Spec", k: int, *, in_fp32: bool = False) -> Array:
    """Return core k of a TT-matrix [r_{k-1}, in_k, out_k, r_k]: floats as they are stored unless `in_fp32`."""
    in_modes, out_modes, ranks = (spec.options[name] for name in ("in_modes", "out_modes", "ranks"))
    parts, columns = _below(tensors, f"core_{k}"), out_modes[k] * ranks[k + 1]
    is_plain = "values" in parts and not in_fp32
    values = parts["values"] if is_plain else _decoded(parts, spec.codecs[f"core_{k}"], columns)
    return np.ascontiguousarray(values).reshape(ranks[k], in_modes[k], out_modes[k], ranks[k + 1])


def _decoded(parts: Arrays, codec: str, columns: int) -> NDArray[np.float32]:
    matrix = coded({name: np.ascontiguousarray(part) for name, part in parts.items()}, codec, columns)
    return rows(matrix, np.arange(matrix.shape[0]))


def _below(tensors: Arrays, name: str) -> dict[str, Array]:
    prefix = f"{name}."
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
