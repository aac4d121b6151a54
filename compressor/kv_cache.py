"""The KV cache: what a decoder remembers of the tokens it has read, a slot per text."""

import torch

KV_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class KVCache:
    """Keys and values of several slots, each with its own length.

    The memory is reserved at once but only touched as it is used, so a slot costs what it holds and growing copies
    nothing. What lies beyond a slot's length is undefined.

    Attributes:
        keys, values: [L, slots, H, capacity, D / H].
        lengths: tokens held per slot [slots], int64.
    """

    def __init__(
        self, *, layers: int, slots: int, heads: int, capacity: int, size: int, dtype: torch.dtype = torch.float32
    ) -> None:
        """Reserve the memory.

        Args:
            layers: L.
            slots: texts at a time.
            heads: H.
            capacity: tokens per slot.
            size: of a head, D / H.
            dtype: keys and values are rounded to it: float32, bfloat16 or float16.

        Raises:
            ValueError: naming the dtype or the size that is not legal.
        """
        if dtype not in KV_DTYPES:
            raise ValueError(f"dtype must be float32, bfloat16 or float16, not {dtype}")
        if slots < 1 or capacity < 1:
            raise ValueError(f"slots and capacity must be at least 1, not {slots} and {capacity}")
        self.keys = torch.empty(layers, slots, heads, capacity, size, dtype=dtype)
        self.values = torch.empty_like(self.keys)
        self.lengths = torch.zeros(slots, dtype=torch.int64)

    @property
    def slots(self) -> int:
        """Texts that it can hold."""
        return self.keys.shape[1]

    @property
    def capacity(self) -> int:
        """Tokens that a slot can hold."""
        return self.keys.shape[3]

    @property
    def dtype(self) -> torch.dtype:
        """Of keys and values."""
        return self.keys.dtype

    @property
    def num_bytes(self) -> int:
        """Bytes that full slots occupy."""
        return self.keys.nbytes + self.values.nbytes

    @property
    def used_bytes(self) -> int:
        """Bytes of the keys and values held now."""
        return int(self.lengths.sum()) * self.num_bytes // (self.slots * self.capacity)

    def reset(self, slot: int) -> None:
        """Empty a slot."""
        self.lengths[slot] = 0
