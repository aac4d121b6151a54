"""How a value stands in Redis: a header that says what it is and vouches for it, then its bytes. Never a pickle.

The header is a magic word, numpy's name of the dtype, the shape, and a digest of key and payload: a value that is
cut off, of another kind, damaged or of another key is refused. Numbers are little-endian.
"""

import struct
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from math import prod

MAGIC = b"TTG1"
DIGEST_BYTES = 16
ITEM_BYTES = {"<f4": 4, "json": 1}


class DamagedValueError(ValueError):
    """The bytes are not what was once put under that key."""


@dataclass(frozen=True)
class Layout:
    """What is expected of a value.

    Attributes:
        dtype: "<f4", or "json" for text, whose length is free.
        shape: of the numbers; () for text.
    """

    dtype: str
    shape: tuple[int, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Bytes of the numbers."""
        return prod(self.shape) * ITEM_BYTES[self.dtype]

    @cached_property
    def _head(self) -> bytes:
        return struct.pack(f"<4s4sB{len(self.shape)}I", MAGIC, self.dtype.encode(), len(self.shape), *self.shape)

    def encode(self, key: str, payload: bytes) -> bytes:
        """Return `payload` behind its header."""
        return b"".join((self._head, _digest(key, payload), payload))

    def decode(self, key: str, data: bytes) -> bytes:
        """Return the payload.

        Raises:
            DamagedValueError: if it is not what `encode` was once given with this key and layout.
        """
        start = len(self._head) + DIGEST_BYTES
        if data[: len(self._head)] != self._head:
            raise DamagedValueError("another dtype or shape")
        if self.dtype != "json" and len(data) - start != self.size_bytes:
            raise DamagedValueError("another length")
        payload = data[start:]
        if data[len(self._head) : start] != _digest(key, payload):
            raise DamagedValueError("another digest")
        return payload


def _digest(key: str, payload: bytes) -> bytes:
    made = blake2b(key.encode(), digest_size=DIGEST_BYTES)
    made.update(payload)
    return made.digest()
