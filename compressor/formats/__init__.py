"""Formats: how one weight matrix is made of coded tensors and multiplied."""

from collections.abc import Mapping
from math import prod

from torch import Tensor

from compressor.codecs import Coded
from compressor.formats.base import Format, Path, Spec, below
from compressor.formats.dense import Dense
from compressor.formats.low_rank import LowRank
from compressor.formats.residual import Residual
from compressor.formats.sparse import Sparse
from compressor.formats.stacked import Stacked
from compressor.formats.token_mps import TokenMPS
from compressor.formats.tt_matrix import TTMatrix

__all__ = [
    "FORMATS",
    "Dense",
    "Format",
    "LowRank",
    "Path",
    "Residual",
    "Sparse",
    "Spec",
    "Stacked",
    "TTMatrix",
    "TokenMPS",
    "from_tensors",
    "prepared",
    "resident_bytes",
]

FORMATS: dict[str, type[Format]] = {
    "dense": Dense,
    "token_mps": TokenMPS,
    "tt_matrix": TTMatrix,
    "low_rank": LowRank,
    "stacked": Stacked,
    "residual": Residual,
    "sparse": Sparse,
}


def from_tensors(tensors: Mapping[str, Tensor], spec: Spec) -> Format:
    """Return the format that `spec` describes, made of exactly these tensors.

    Raises:
        ValueError: naming the format, the option or the tensor that does not fit.
    """
    if spec.format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, not {spec.format!r}")
    own = {name: tensor for name, tensor in tensors.items() if name.partition(".")[0] not in spec.inner}
    inner = {name: _inner(name, tensors, child) for name, child in spec.inner.items()}
    return FORMATS[spec.format].from_tensors(own, spec, inner)


def prepared(form: Format) -> Format:
    """Return the format that is kept in memory to multiply along `form.path`.

    The outer format's path decides; inner formats have no say.
    "stored": as it is, but fp32 instead of codes that only a kernel multiplies by and this CPU lacks it.
    "factors": every factor decoded to fp32. "dense": W decoded to fp32.
    """
    if form.path == "stored":
        return form.runnable()
    return form.recoded("fp32") if form.path == "factors" else Dense.of(form.dense(), "fp32")


def _inner(name: str, tensors: Mapping[str, Tensor], spec: Spec) -> Format:
    try:
        return from_tensors(below(tensors, name), spec)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def resident_bytes(form: Format) -> int:
    """Return what `prepared(form)` occupies on a CPU with all kernels, without making it."""
    if form.path == "stored":
        return form.num_bytes
    if form.path == "factors":
        values = sum(prod(coded.shape) for coded in form.modules() if isinstance(coded, Coded))
        parts = [part for part in form.modules() if isinstance(part, Format)]
        return 4 * values + sum(index.nbytes for part in parts for index in part.indices().values())
    return 4 * form.out_features * form.in_features
