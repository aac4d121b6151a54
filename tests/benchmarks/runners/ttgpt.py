"""Ours, in process: the calls that the service's engine makes."""

from pathlib import Path

import numpy as np

from compressor.runtime import load as artifact
from compressor.runtime.kv import Cache
from compressor.runtime.model import Model

KV_DTYPE = "fp16"  # the service's default


class TTGPT:
    """An artefact in the form that the service runs."""

    def __init__(self, model: Model) -> None:
        self._model = model
        read = {name: size for name, size in model.num_bytes.items() if name != "wpe"}
        if "lm_head" in read:
            del read["wte"]  # then only rows of it are read
        self.weight_bytes = sum(read.values())
        self.kv_bytes_per_token = model.kv_bytes_per_token(KV_DTYPE)

    def reserve(self, batch: int, capacity: int) -> None:
        pass

    def generate(self, prompts: list[list[int]], count: int) -> list[list[int]]:
        unread = np.array(prompts)  # [B, T]
        cache = Cache(self._model.config, len(prompts), unread.shape[1] + count - 1, KV_DTYPE)  # the last is never read
        slots, written = np.arange(len(prompts)), []
        for _ in range(count):
            counts = np.full(len(prompts), unread.shape[1])
            logits = self._model.read(unread.ravel(), cache, slots, counts, wanted=counts.cumsum() - 1).logits  # [B, V]
            assert logits is not None
            unread = logits.argmax(-1)[:, np.newaxis]
            written.append(unread)
        found: list[list[int]] = np.concatenate(written, axis=1).tolist()
        return found


def load(model: Path, threads: int) -> TTGPT:
    """Return the artefact in the folder `model`."""
    return TTGPT(artifact.load(model, threads)[1])
