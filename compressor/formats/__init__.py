"""Formats: how one weight matrix is made of coded tensors and multiplied."""

from collections.abc import Mapping

from torch import Tensor

from compressor.formats.base import Format, Path, Spec
from compressor.formats.dense import Dense
from compressor.formats.low_rank import LowRank
from compressor.formats.token_mps import TokenMPS

__all__ = ["FORMATS", "Dense", "Format", "LowRank", "Path", "Spec", "TokenMPS", "from_tensors", "prepared"]

FORMATS: dict[str, type[Format]] = {
    "dense": Dense,
    "token_mps": TokenMPS,
    "low_rank": LowRank,
}


def from_tensors(tensors: Mapping[str, Tensor], spec: Spec) -> Format:
    """Return the format that `spec` describes, made of exactly these tensors.

    Raises:
        ValueError: naming the format, the option or the tensor that does not fit.
    """
    if spec.format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, not {spec.format!r}")
    return FORMATS[spec.format].from_tensors(tensors, spec)


def prepared(form: Format) -> Format:
    """Return the format that is kept in memory to multiply along `form.path`.

    "stored": as it is. "factors": every factor decoded to fp32. "dense": W decoded to fp32.
    """
    if form.path == "stored":
        return form
    return form.recoded("fp32") if form.path == "factors" else Dense.of(form.dense(), "fp32")
