"""Keys and values of the texts that a model has read, in pages of a few tokens."""

import mmap
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compressor.runtime._decoder import LANES

if TYPE_CHECKING:
    from compressor.artifact.gpt2_config import GPT2Config

KV_DTYPES = {"fp32": np.float32, "fp16": np.float16, "bf16": np.uint16}  # bf16 are their bits
PAGE_TOKENS = LANES


class Cache:
    """Keys and values of `slots` texts of up to `capacity` tokens.

    Attributes:
        keys, values: of PAGE_TOKENS tokens per page, [pages, layers, heads, D / heads, LANES] and
            [pages, layers, heads, LANES, D / heads padded to a multiple of LANES].
        table: the pages of each slot, in the order of its tokens, int64 [slots, blocks]; -1 where it has none.
        capacity: tokens that a text can have.
        lengths: tokens of each text, int64 [slots].
    """

    def __init__(
        self, config: "GPT2Config", slots: int, capacity: int, dtype: str = "fp32", pages: int | None = None
    ) -> None:
        """Hold nothing yet.

        Args:
            config: of the model.
            slots: see above.
            capacity: see above.
            dtype: one of KV_DTYPES.
            pages: that the caller gives to slots as they need them; by default every slot has its own for good.

        Raises:
            ValueError: if a number is out of range.
        """
        if dtype not in KV_DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(KV_DTYPES)}, not {dtype!r}")
        if slots < 1:
            raise ValueError(f"slots must be at least 1, not {slots}")
        if not 1 <= capacity <= config.n_positions:
            raise ValueError(f"capacity must be between 1 and n_positions = {config.n_positions}, not {capacity}")
        blocks = pages_for(capacity)
        size, count = config.n_embd // config.n_head, slots * blocks if pages is None else pages
        shape = (count, config.n_layer, config.n_head)
        self._memory: list[mmap.mmap] = []
        self.keys = self._zeros((*shape, size, LANES), KV_DTYPES[dtype])
        self.values = self._zeros((*shape, LANES, -(-size // LANES) * LANES), KV_DTYPES[dtype])
        self.table = np.full((slots, blocks), -1) if pages is not None else np.arange(count).reshape(slots, blocks)
        self.capacity = capacity
        self.lengths = np.zeros(slots, np.int64)

    @property
    def slots(self) -> int:
        """Texts that it can hold."""
        return len(self.table)

    @property
    def pages(self) -> int:
        """Pages that it has."""
        return len(self.keys)

    @property
    def num_bytes(self) -> int:
        """Bytes that full pages occupy."""
        return self.keys.nbytes + self.values.nbytes

    @property
    def page_bytes(self) -> int:
        """Bytes of one page."""
        return self.num_bytes // self.pages

    def discard(self, page: int) -> None:
        """Give the memory of a page back to the system; nothing stands in it then."""
        for memory in self._memory:
            size = len(memory) // self.pages
            start = -(-page * size // mmap.PAGESIZE) * mmap.PAGESIZE
            length = (page + 1) * size // mmap.PAGESIZE * mmap.PAGESIZE - start
            if length > 0:
                memory.madvise(mmap.MADV_DONTNEED, start, length)

    def _zeros(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """Return zeros, which take memory as they are written, and not by 2 MB."""
        memory = mmap.mmap(-1, prod(shape) * np.dtype(dtype).itemsize, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        self._memory.append(memory)
        return np.frombuffer(memory, dtype).reshape(shape)


def pages_for(tokens: int) -> int:
    """Return how many pages so many tokens of one text need."""
    return -(-tokens // PAGE_TOKENS)
