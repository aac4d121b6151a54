"""Stored tensors as torch's: the same memory, and dtypes that numpy does not know."""

from pathlib import Path

import torch
from torch import Tensor

from compressor.artifact import tensor_file
from compressor.artifact.layouts import Part
from compressor.artifact.tensor_file import Array

DTYPES = {
    "BF16": torch.bfloat16,
    "BOOL": torch.bool,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "I8": torch.int8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "U8": torch.uint8,
}


def tensor(array: Array, dtype: str) -> Tensor:
    """Return a stored array, of the dtype that safetensors calls so."""
    return torch.from_numpy(array).view(DTYPES[dtype])


def array(tensor: Tensor) -> Array:
    """Return a tensor as numpy's; bf16 are their bits as uint16."""
    found = tensor.detach().contiguous()
    values: Array = (found.view(torch.uint16) if found.dtype is torch.bfloat16 else found).numpy()
    return values


def check_part(name: str, found: Tensor, expected: Part) -> None:
    """Refuse a tensor of another shape or dtype than its layout says; raises ValueError."""
    if (tuple(found.shape), found.dtype) != (expected.shape, dtype := DTYPES[expected.dtype]):
        raise ValueError(f"{name} must be {dtype} {list(expected.shape)}, not {found.dtype} {list(found.shape)}")


def read(path: Path) -> tuple[dict[str, Tensor], str]:
    """Return the tensors of a safetensors file, and its sha256.

    Raises:
        OSError: if it cannot be read.
        ValueError: saying why it is not a safetensors file.
    """
    with tensor_file.opened(path) as file:
        dtypes = {place.name: place.part.dtype for place in file.places}
        tensors = {name: tensor(values, dtypes[name]) for name, values in file.tensors()}
        return tensors, file.sha256
