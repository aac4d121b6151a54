"""transformers: `generate` of GPT2LMHeadModel."""

from functools import partial
from pathlib import Path

import torch
from transformers import GPT2LMHeadModel
from transformers.utils import logging


class HuggingFace:
    """GPT2LMHeadModel in one dtype."""

    def __init__(self, model: Path, threads: int, *, dtype: torch.dtype) -> None:
        torch.set_num_threads(threads)
        logging.set_verbosity_error()
        self._model = GPT2LMHeadModel.from_pretrained(model, dtype=dtype, local_files_only=True).eval()
        config = self._model.config
        tensors = dict(self._model.named_parameters())  # the tied head is not named again
        self.weight_bytes = sum(t.nbytes for name, t in tensors.items() if name != "transformer.wpe.weight")
        self.kv_bytes_per_token = 2 * config.n_layer * config.n_embd * dtype.itemsize

    def reserve(self, batch: int, capacity: int) -> None:
        pass

    @torch.inference_mode()
    def generate(self, prompts: list[list[int]], count: int) -> list[list[int]]:
        ids = torch.tensor(prompts)  # [B, T]
        written = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=count,
            min_new_tokens=count,
            pad_token_id=0,
        )  # [B, T + count]
        return written[:, ids.shape[1] :].tolist()  # type: ignore[no-any-return]


load_fp32 = partial(HuggingFace, dtype=torch.float32)
load_bf16 = partial(HuggingFace, dtype=torch.bfloat16)
