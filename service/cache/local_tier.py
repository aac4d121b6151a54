"""The first tier of the cache: values in this process, the least recently used ones leave first."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from threading import Lock

ENTRY_BYTES = 200  # of a key, a bytes object's header and their places in the dictionary


class LocalTier:
    """A bounded dictionary for several threads.

    Attributes:
        size_bytes: what the entries occupy, never more than the limit.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.size_bytes = 0
        self._limit_bytes = limit_bytes
        self._values: OrderedDict[str, bytes] = OrderedDict()
        self._lock = Lock()

    def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return the value of every key, None where there is none."""
        values, move = self._values, self._values.move_to_end
        found: list[bytes | None] = []
        with self._lock:
            for key in keys:
                value = values.get(key)
                if value is not None:
                    move(key)
                found.append(value)
        return found

    def absent(self, keys: Iterable[str]) -> list[str]:
        """Return the keys without a value; nothing counts as used."""
        with self._lock:
            return [key for key in keys if key not in self._values]

    def put_many(self, items: Iterable[tuple[str, bytes]]) -> None:
        """Add or replace values; one that is larger than the limit is not kept."""
        with self._lock:
            for key, value in items:
                old = self._values.pop(key, None)
                self.size_bytes -= 0 if old is None else _size(old)
                if _size(value) > self._limit_bytes:
                    continue
                self._values[key] = value
                self.size_bytes += _size(value)
                while self.size_bytes > self._limit_bytes:
                    self.size_bytes -= _size(self._values.popitem(last=False)[1])


def _size(value: bytes) -> int:
    return len(value) + ENTRY_BYTES
