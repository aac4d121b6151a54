"""Cores of a TT-matrix multiplied ahead, where that makes the product of the whole with one row of x cheaper."""

from collections.abc import Callable
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from compressor.artifact.manifest import Spec
from compressor.runtime import matrices
from compressor.runtime._decoder import Matrix
from compressor.runtime.matrices import Arrays

Product = NDArray[np.float32]
Shape = tuple[int, int, int, int]  # of a core: rank, in, out, rank
Compute = Callable[[], Product]
Find = Callable[["Span", Shape, Compute], Product]


def matrix_of(tensors: Arrays, spec: Spec, *, is_head: bool, activations: int = 16, find: Find | None = None) -> Matrix:
    """Return the matrix that `spec` describes, of exactly these stored tensors; a head has its best span merged.

    Args:
        tensors: stored ones; they may be freed afterwards.
        spec: of the matrix.
        is_head: whether it is multiplied in every step, by one row of x for each text.
        activations: see `matrices.matrix_of`.
        find: gives the product of a span, see `merged`; it is computed by default.
    """
    if is_head:
        tensors, spec = merged(tensors, spec, find or (lambda span, shape, compute: compute()))
    return matrices.matrix_of(tensors, spec, activations)


class Span(NamedTuple):
    """Neighbouring cores, from the first to the one behind the last."""

    start: int
    stop: int


def merged(tensors: Arrays, spec: Spec, find: Find) -> tuple[Arrays, Spec]:
    """Return the same matrix, in which the best span of cores is one core in fp32; itself if none is worth it.

    Args:
        tensors: of a matrix of any format.
        spec: of it.
        find: gives the product of a span, of a shape, from what computes it.
    """
    if spec.format != "tt_matrix" or (span := best_span(spec)) is None:
        return tensors, spec
    shapes = _core_shapes(spec)
    shape = _joined(shapes[span.start : span.stop])
    core = find(span, shape, lambda: product(tensors, spec, span))
    order = [*range(span.start), None, *range(span.stop, len(shapes))]
    kept: dict[str, NDArray[np.generic]] = {k: t for k, t in tensors.items() if not k.startswith("core_")}
    codecs = {}
    for place, k in enumerate(order):
        codecs[f"core_{place}"] = "fp32" if k is None else spec.codecs[f"core_{k}"]
        if k is None:
            kept[f"core_{place}.values"] = core.reshape(shape[0] * shape[1], -1)
        else:
            own = f"core_{k}."
            kept |= {f"core_{place}.{key.removeprefix(own)}": t for key, t in tensors.items() if key.startswith(own)}
    joined = [shape if k is None else shapes[k] for k in order]
    options = {"in_modes": [s[1] for s in joined], "out_modes": [s[2] for s in joined]}
    options["ranks"] = [1, *(s[3] for s in joined)]
    return kept, spec.model_copy(update={"codecs": codecs, "options": spec.options | options})


def best_span(spec: Spec) -> Span | None:
    """Return the span of at least two cores, not all, whose product makes x W^T the cheapest, if any does.

    No product is taken that has more than half as many values as W.
    """
    shapes = _core_shapes(spec)
    spans = [Span(a, b) for a in range(len(shapes)) for b in range(a + 2, len(shapes) + 1) if b - a < len(shapes)]
    found: tuple[int, Span | None] = (_multiply_adds(shapes), None)
    for span in spans:
        shape = _joined(shapes[span.start : span.stop])
        cost = _multiply_adds([*shapes[: span.start], shape, *shapes[span.stop :]])
        if 2 * prod(shape) <= prod(spec.shape) and cost < found[0]:
            found = cost, span
    return found[1]


def product(tensors: Arrays, spec: Spec, span: Span) -> Product:
    """Return the product of the cores of a span as one core, fp32."""
    whole = matrices.core(tensors, spec, span.start, in_fp32=True)
    for k in range(span.start + 1, span.stop):
        following = matrices.core(tensors, spec, k, in_fp32=True)
        (r, i, o, _), (_, j, p, s) = whole.shape, following.shape
        whole = np.tensordot(whole, following, 1).transpose(0, 1, 3, 2, 4, 5).reshape(r, i * j, o * p, s)
    return np.ascontiguousarray(whole)


def _core_shapes(spec: Spec) -> list[Shape]:
    ranks = spec.options["ranks"]
    return list(zip(ranks[:-1], spec.options["in_modes"], spec.options["out_modes"], ranks[1:], strict=True))


def _joined(shapes: list[Shape]) -> Shape:
    return shapes[0][0], prod(s[1] for s in shapes), prod(s[2] for s in shapes), shapes[-1][3]


def _multiply_adds(shapes: list[Shape]) -> int:
    """Return what a row of x costs that is contracted with one core after the other, from the better end."""
    return min(_from_left(shapes), _from_left([(s, i, o, r) for r, i, o, s in reversed(shapes)]))


def _from_left(shapes: list[Shape]) -> int:
    done, total, rest = 1, 0, prod(shape[1] for shape in shapes)
    for left, ins, outs, right in shapes:
        rest //= ins
        total += done * left * ins * rest * outs * right
        done *= outs
    return total
