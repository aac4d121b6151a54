"""Ours, in process: the calls that the service's engine makes."""

from pathlib import Path

import torch

from compressor.runtime import artifact
from compressor.runtime.formats import resident_bytes
from compressor.runtime.gpt2 import GPT2

KV_DTYPE = torch.float16  # the service's default


class TTGPT:
    """An artefact in the form that the service runs."""

    def __init__(self, model: GPT2) -> None:
        self._model = model
        read = {name: form for name, form in model.matrices().items() if name != "wpe"}
        if "lm_head" in read:
            del read["wte"]  # then only rows of it are read
        self.weight_bytes = sum(resident_bytes(form) for form in read.values())
        self.weight_bytes += sum(vector.num_bytes for vector in model.vectors().values())
        self.kv_bytes_per_token = model.new_cache(1, 1, KV_DTYPE).num_bytes

    def reserve(self, batch: int, capacity: int) -> None:
        pass

    @torch.inference_mode()
    def generate(self, prompts: list[list[int]], count: int) -> list[list[int]]:
        unread = torch.tensor(prompts)  # [B, T]
        cache = self._model.new_cache(len(prompts), unread.shape[1] + count - 1, KV_DTYPE)  # the last is never read
        written = []
        for _ in range(count):
            logits = self._model.logits(self._model(unread, cache)[:, -1])  # [B, V]
            unread = logits.argmax(-1, keepdim=True)  # [B, 1]
            written.append(unread)
        return torch.cat(written, dim=1).tolist()


def load(model: Path, threads: int) -> TTGPT:
    """Return the artefact in the folder `model`."""
    torch.set_num_threads(threads)
    with torch.inference_mode():
        return TTGPT(artifact.read(model).model.prepared())
