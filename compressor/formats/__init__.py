"""Formats: how one weight matrix is made of coded tensors and multiplied."""

from collections.abc import Mapping

from torch import Tensor

from compressor.artifact.manifest import Spec
from compressor.formats.base import Format, below
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
    "Residual",
    "Sparse",
    "Spec",
    "Stacked",
    "TTMatrix",
    "TokenMPS",
    "from_tensors",
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


def _inner(name: str, tensors: Mapping[str, Tensor], spec: Spec) -> Format:
    try:
        return from_tensors(below(tensors, name), spec)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
