"""Matrices as they are stored, ready to be multiplied: from an artefact's arrays to objects of `_decoder`. No torch.

A codec's parts and a format's tensors are described in `compressor.codecs` and `compressor.formats`.
bf16, which numpy does not know, are their bits as uint16.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compressor.artifact.shapes import train_size
from compressor.runtime._decoder import Matrix

if TYPE_CHECKING:
    from compressor.formats import Spec

Array = NDArray[Any]
Arrays = Mapping[str, Array]
INTEGERS = re.compile(r"int([2348])(?:-(?:g(\d+)|row)(?:-zp)?)?")
DEFAULT_GROUPS = {"int4": 64, "int3": 64, "int2": 32}


def matrix_of(tensors: Arrays, spec: "Spec") -> Matrix:
    """Return the matrix that `spec` describes, of exactly these stored tensors; they may be freed afterwards.

    Raises:
        ValueError: naming what does not fit.
    """
    match spec.format:
        case "dense":
            return coded(_below(tensors, "matrix"), spec.codecs["matrix"], spec.shape[1])
        case "low_rank":
            return _low_rank(tensors, spec)
        case "stacked":
            blocks = [str(k) for k in range(len(spec.inner))]
            return Matrix.stacked([matrix_of(_below(tensors, name), spec.inner[name]) for name in blocks])
        case "residual":
            parts = (matrix_of(_below(tensors, name), spec.inner[name]) for name in ("base", "correction"))
            return Matrix.residual(*parts)
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
    raise ValueError(f"format must be one that compressor.formats knows, not {spec.format!r}")


def coded(parts: Arrays, codec: str, columns: int) -> Matrix:
    """Return stored values [n, columns]."""
    found = INTEGERS.fullmatch(codec)
    if not found:
        return Matrix.floats(parts["values"])
    bits, group = int(found[1]), int(found[2] or DEFAULT_GROUPS.get(codec, columns))
    group = min(group, columns)
    return Matrix.integers(parts["codes"], parts["scale"], parts.get("zero"), bits=bits, columns=columns, group=group)


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


def _low_rank(tensors: Arrays, spec: "Spec") -> Matrix:
    rank, width = spec.options["rank"], {"row_scale": spec.shape[0], "column_offset": spec.shape[1]}
    left = coded(_below(tensors, "left"), spec.codecs["left"], rank)
    right = coded(_below(tensors, "right"), spec.codecs["right"], spec.shape[1])
    vectors = {
        name: _decoded({part: t[np.newaxis] for part, t in _below(tensors, name).items()}, spec.codecs[name], size)[0]
        for name, size in width.items()
        if spec.options[name]
    }
    return Matrix.low_rank(left, right, **vectors)


def _tt_matrix(tensors: Arrays, spec: "Spec") -> Matrix:
    in_modes, out_modes, ranks = (spec.options[name] for name in ("in_modes", "out_modes", "ranks"))
    cores = []
    for k, (i, o) in enumerate(zip(in_modes, out_modes, strict=True)):
        parts, codec, columns = _below(tensors, f"core_{k}"), spec.codecs[f"core_{k}"], o * ranks[k + 1]
        core = parts["values"] if "values" in parts else _decoded(parts, codec, columns)
        cores.append(np.ascontiguousarray(core).reshape(ranks[k], i, o, ranks[k + 1]))
    places = tensors["permutation.values"].astype(np.int32) if spec.options["permuted"] else None
    return Matrix.tt_matrix(cores, shape=spec.shape, in_modes=in_modes, out_modes=out_modes, ranks=ranks, places=places)


def _decoded(parts: Arrays, codec: str, columns: int) -> NDArray[np.float32]:
    matrix = coded({name: np.ascontiguousarray(part) for name, part in parts.items()}, codec, columns)
    return rows(matrix, np.arange(matrix.shape[0]))


def _below(tensors: Arrays, name: str) -> dict[str, Array]:
    prefix = f"{name}."
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
