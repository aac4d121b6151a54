"""llama.cpp: its C interface through llama-cpp-python, whose own `Llama` class decodes one row at a time."""

import ctypes
from pathlib import Path

import llama_cpp
import numpy as np

UBATCH = 512  # tokens of one forward pass; the library's default


class LlamaCpp:
    """A GGUF file; keys and values are fp16."""

    def __init__(self, model: Path, threads: int) -> None:
        self._quiet = llama_cpp.llama_log_callback(_ignore)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self._threads = threads
        self._model = llama_cpp.llama_model_load_from_file(str(model).encode(), _model_params())
        if self._model is None:
            raise RuntimeError(f"llama.cpp does not load {model.name}")
        width, layers = llama_cpp.llama_model_n_embd(self._model), llama_cpp.llama_model_n_layer(self._model)
        positions = 4 * width * llama_cpp.llama_model_n_ctx_train(self._model)
        self.weight_bytes = llama_cpp.llama_model_size(self._model) - positions
        self.kv_bytes_per_token = 2 * layers * width * 2
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._context: llama_cpp.llama_context_p | None = None

    def reserve(self, batch: int, capacity: int) -> None:
        if self._context is not None:
            llama_cpp.llama_free(self._context)
        params = llama_cpp.llama_context_default_params()
        params.n_seq_max = batch
        params.n_ctx = batch * -(-capacity // 256) * 256  # llama.cpp gives each row an equal part, padded to 256
        params.n_batch = params.n_ctx
        params.n_ubatch = UBATCH
        params.n_threads = params.n_threads_batch = self._threads
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if self._context is None:
            raise RuntimeError(f"llama.cpp has no room for {batch} rows of {capacity} tokens")

    def generate(self, prompts: list[list[int]], count: int) -> list[list[int]]:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), False)
        rows = [self._decode(prompts, 0)]
        for i in range(count - 1):
            rows.append(self._decode([[token] for token in rows[-1]], len(prompts[0]) + i))
        return [list(tokens) for tokens in zip(*rows, strict=True)]

    def _decode(self, rows: list[list[int]], start: int) -> list[int]:
        """Run the tokens of every row from position `start`; return the best next token of each."""
        length = len(rows[0])
        batch = llama_cpp.llama_batch_init(len(rows) * length, 0, 1)
        batch.n_tokens = len(rows) * length
        for row, tokens in enumerate(rows):
            for i, token in enumerate(tokens):
                at = row * length + i
                batch.token[at], batch.pos[at], batch.logits[at] = token, start + i, i == length - 1
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, row
        status = llama_cpp.llama_decode(self._context, batch)
        llama_cpp.llama_batch_free(batch)
        if status != 0:
            raise RuntimeError(f"llama_decode: {status}")
        return [self._best((row + 1) * length - 1) for row in range(len(rows))]

    def _best(self, at: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self._context, at)
        return int(np.ctypeslib.as_array(logits, (self._vocabulary,)).argmax())


def _model_params() -> "llama_cpp.llama_model_params":
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = 0
    return params


def _ignore(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    """Say nothing."""


load = LlamaCpp
