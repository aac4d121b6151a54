"""A safetensors file, read once into memory of this process.

Eight bytes with the length of the header, a JSON object with dtype, shape and place of every tensor, and then their
bytes, without a gap. safetensors itself maps files into memory: a file that is cut off later ends the process
(SIGBUS), one that is overwritten changes its values, and what was hashed is not what is used.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from compressor.storage import files

MOST_HEADER_BYTES = 100_000_000  # as safetensors has it
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


@dataclass(frozen=True)
class TensorFile:
    """What was in a file.

    Attributes:
        tensors: by name, each in memory of its own.
        sha256: of the very bytes that were read.
        size_bytes: of the file.
    """

    tensors: dict[str, Tensor]
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class _Place:
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


def read(path: Path) -> TensorFile:
    """Return what is in the file; it is read once, from the beginning to the end.

    Raises:
        OSError: if it cannot be read.
        ValueError: saying why it is not a safetensors file.
    """
    checksum = hashlib.sha256()
    with files.opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        header = _read_header(file, size)
        checksum.update(header)
        tensors = {}
        for place in _places(header[8:], size - len(header)):
            room = torch.empty(place.stop - place.start, dtype=torch.uint8)
            if not files.fill(file, room.numpy().data):
                raise ValueError(f"{place.name} is cut off")
            checksum.update(room.numpy().data)
            tensors[place.name] = room.view(place.dtype).reshape(place.shape)
        if file.read(1):
            raise ValueError("it grew while it was read")
    return TensorFile(tensors, checksum.hexdigest(), size)


def _read_header(file: BinaryIO, size: int) -> bytes:
    """Return the length and the header."""
    length = bytearray(8)
    if not files.fill(file, memoryview(length)):
        raise ValueError("it is shorter than 8 bytes")
    count = int.from_bytes(length, "little")
    if count > min(size - 8, MOST_HEADER_BYTES):
        raise ValueError("its header is longer than the file, which is cut off or of another kind")
    header = bytearray(8 + count)
    header[:8] = length
    if not files.fill(file, memoryview(header)[8:]):
        raise ValueError("its header is cut off")
    return bytes(header)


def _places(header: bytes, size: int) -> list[_Place]:
    """Return where every tensor is, in the order of the file, which they fill without a gap."""
    try:
        raw = json.loads(header, object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its header is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ValueError("its header is not a JSON object")
    raw.pop("__metadata__", None)
    places = sorted((_place(name, entry) for name, entry in raw.items()), key=lambda p: (p.start, p.stop))
    at = 0
    for place in places:
        if place.start != at:
            raise ValueError(f"{place.name} does not begin where the tensor before it ends")
        at = place.stop
    if at != size:
        raise ValueError(f"its tensors have {at:,} bytes, not the {size:,} that are there: it is cut off or changed")
    return places


def _place(name: str, entry: Any) -> _Place:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name} must have dtype, shape and data_offsets")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        raise ValueError(f"{name} must have a shape and two data_offsets of whole numbers")
    if entry["dtype"] not in list(DTYPES):
        raise ValueError(f"{name} has the dtype {entry['dtype']}, and only {', '.join(DTYPES)} are read")
    dtype, (start, stop) = DTYPES[entry["dtype"]], offsets
    if stop - start != prod(shape) * dtype.itemsize:
        raise ValueError(f"{name} has {stop - start} bytes, not as many as its shape and dtype need")
    return _Place(name, dtype, tuple(shape), start, stop)


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(count) is int and count >= 0 for count in value)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("a name comes twice")
    return found
