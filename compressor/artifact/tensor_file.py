"""A safetensors file, read once into memory of this process.

Eight bytes with the length of the header, a JSON object with dtype, shape and place of every tensor, and then their
bytes, without a gap. safetensors itself maps files into memory: a file that is cut off later ends the process
(SIGBUS), one that is overwritten changes its values, and what was hashed is not what is used.
"""

import hashlib
import json
import mmap
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from compressor.artifact.layouts import Part
from compressor.storage import files

PAGED_BYTES = 1 << 16
MOST_HEADER_BYTES = 100_000_000  # as safetensors has it
DTYPES: dict[str, type[np.generic]] = {  # what numpy does not know are the bits
    "BF16": np.uint16,
    "BOOL": np.bool_,
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
    "F8_E4M3": np.uint8,
    "F8_E5M2": np.uint8,
    "I16": np.int16,
    "I32": np.int32,
    "I64": np.int64,
    "I8": np.int8,
    "U16": np.uint16,
    "U32": np.uint32,
    "U64": np.uint64,
    "U8": np.uint8,
}
Array = NDArray[Any]


class Place(NamedTuple):
    """A tensor in the file: its name, what it is, and from where to where its bytes are behind the header."""

    name: str
    part: Part
    start: int
    stop: int


@dataclass
class TensorFile:
    """An open file: `tensors` reads it, once.

    Attributes:
        places: of all tensors, in the order of the file, which they fill without a gap.
        size_bytes: of the file.
    """

    places: list[Place]
    size_bytes: int
    _file: BinaryIO
    _checksum: "hashlib._Hash"

    def tensors(self) -> Iterator[tuple[str, Array]]:
        """Read every tensor in turn, each into memory of its own; raises ValueError if the file is cut off or grows."""
        with ThreadPoolExecutor(1) as pool:  # that hashes one tensor while its caller works on it
            hashed: Future[None] | None = None
            for place in self.places:
                room = _room(place.stop - place.start)
                if not files.fill(self._file, room.data):
                    raise ValueError(f"{place.name} is cut off")
                if hashed:
                    hashed.result()
                hashed = pool.submit(self._checksum.update, room.data)
                yield place.name, room.view(DTYPES[place.part.dtype]).reshape(place.part.shape)
        if self._file.read(1):
            raise ValueError("it grew while it was read")

    @property
    def sha256(self) -> str:
        """Of the very bytes that were read."""
        return self._checksum.hexdigest()


def _room(size: int) -> NDArray[np.uint8]:
    """Return so many bytes; many of them in pages of their own, which go back to the system as soon as they are let go.

    The allocator would keep them for what comes next, and what is packed out of them comes in other sizes.
    """
    return np.frombuffer(mmap.mmap(-1, size), np.uint8) if size >= PAGED_BYTES else np.empty(size, np.uint8)


@contextmanager
def opened(path: Path) -> Iterator[TensorFile]:
    """Open a file, and read its header.

    Raises:
        OSError: if it cannot be read.
        ValueError: saying why it is not a safetensors file.
    """
    with files.opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        header = _read_header(file, size)
        yield TensorFile(_places(header[8:], size - len(header)), size, file, hashlib.sha256(header))


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


def _places(header: bytes, size: int) -> list[Place]:
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


def _place(name: str, entry: Any) -> Place:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name} must have dtype, shape and data_offsets")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        raise ValueError(f"{name} must have a shape and two data_offsets of whole numbers")
    if entry["dtype"] not in list(DTYPES):
        raise ValueError(f"{name} has the dtype {entry['dtype']}, and only {', '.join(DTYPES)} are read")
    part, (start, stop) = Part(tuple(shape), entry["dtype"]), offsets
    if stop - start != part.num_bytes:
        raise ValueError(f"{name} has {stop - start} bytes, not as many as its shape and dtype need")
    return Place(name, part, start, stop)


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(count) is int and count >= 0 for count in value)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("a name comes twice")
    return found
