"""What a text says about every matrix: second moments of its inputs, and weights of the vocabulary's rows."""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from compressor.errors import check_range
from compressor.formats.base import blocks
from compressor.gpt2 import GPT2, Linear
from compressor.methods.base import Statistics
from compressor.progress import Progress, silent
from compressor.runtime.evaluate import read_utf8
from compressor.runtime.generate import generate
from compressor.runtime.model import Model

T = TypeVar("T")
DEFAULT_TOKENS = 16384
SAMPLE_ROWS = 16  # texts sampled at a time
SAMPLE_BYTES = 2**29  # of their keys and values, which are 75 MB a text for GPT-2
COLLECT_TOKENS = 2048  # tokens run through the model at a time
HEAD_ROWS = 256  # positions whose logits exist at a time: 51 MB at V = 50257
DISTANCES = (1, 2, 4, 8, 16)  # in tokens, of the differences
EXCERPT_CHARACTERS = 12  # per token wanted; English has 4 to 5
LONGEST_WORD = 64  # characters at the beginning of an excerpt, in which a space is looked for


def sample_text(model: Model, tokens: int = DEFAULT_TOKENS, seed: int = 0, progress: Progress = silent) -> Tensor:
    """Return text [rows, context] that the model itself writes after an end of text, at temperature 1.

    Args:
        model: the dense model.
        tokens: how many at least.
        seed: of the sampling; equal seeds give equal texts.
        progress: progress callback.
    """

    def each(items: Iterable[T], *, label: str, total: int) -> Iterable[T]:
        return progress(items, label="Sampling calibration text", total=total)

    check_range("tokens", tokens, 1, 10**9)
    context = model.config.n_positions
    rows = -(-tokens // context)
    row_bytes = 8 * model.config.n_layer * context * model.config.n_embd
    batches = blocks(rows, max(1, min(SAMPLE_ROWS, SAMPLE_BYTES // row_bytes)))
    texts = []
    for batch in batches:
        start = np.full((len(batch), 1), model.config.eos_token_id)
        texts.append(generate(model, start, context - 1, temperature=1.0, seed=seed + batch.start, progress=each))
    return torch.from_numpy(np.concatenate(texts))


def read_ids(paths: Sequence[Path], tokenizer: Tokenizer, *, context: int, tokens: int = DEFAULT_TOKENS) -> Tensor:
    """Return `tokens` tokens of UTF-8 text files, plain or .xz, in whole rows [rows, context], or all they have.

    Long texts give excerpts at even distances, as long as it takes, shorter ones all rows from their beginning.

    Raises:
        ValueError: if a file cannot be read, or there are fewer than `context` tokens.
    """
    text = "\n".join(read_utf8(path, "calibration text") for path in paths)
    count, length = -(-tokens // context), EXCERPT_CHARACTERS * context
    while len(text) > count * length:
        rows = [ids[:context] for ids in _encoded(_excerpts(text, count, length), tokenizer) if len(ids) >= context]
        if len(rows) == count:
            return torch.tensor(rows)
        length *= 4  # its tokens are longer
    (ids,) = _encoded([text], tokenizer)
    if len(ids) < context:
        raise ValueError(f"calibration text must have at least {context} tokens, the model's context, not {len(ids)}")
    return torch.tensor(ids[: min(count, len(ids) // context) * context]).view(-1, context)


def _excerpts(text: str, count: int, length: int) -> list[str]:
    """Return excerpts at even distances; each begins with a whole word where words are told apart by spaces."""
    starts = [i * (len(text) - length) // max(1, count - 1) for i in range(count)]
    spaces = [text.find(" ", start, start + LONGEST_WORD) + 1 for start in starts]
    return [text[space or start : start + length] for start, space in zip(starts, spaces, strict=True)]


def _encoded(texts: list[str], tokenizer: Tokenizer) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


@torch.inference_mode()
def collect(model: GPT2, ids: Tensor, progress: Progress = silent) -> dict[str, Statistics]:
    """Return the statistics of every matrix by name.

    Args:
        model: the dense model, see `GPT2.expanded`.
        ids: tokens [rows, T].
        progress: progress callback, once per batch of rows.
    """
    if ids.dim() != 2 or not ids.numel():
        raise ValueError(f"ids must have shape [rows, T] and not be empty, not {list(ids.shape)}")
    linears = {name: module for name, module in model.named_modules() if isinstance(module, Linear)}
    moments = {name: _Mean() for name in [*linears, "head"]}
    uncertainty = _Mean()
    differences = {name: _Mean() for name in linears if name.endswith("attn.c_attn") and ids.shape[1] > 1}
    hooks = [linears[name].register_forward_pre_hook(_calling(moments[name].add_moment)) for name in linears]
    hooks += [linears[n].register_forward_pre_hook(_calling(mean.add_differences)) for n, mean in differences.items()]
    batches = ids.split(max(1, COLLECT_TOKENS // ids.shape[1]))
    try:
        for batch in progress(batches, label="Collecting statistics", total=len(batches)):
            hidden = model(batch).flatten(0, 1)  # [tokens, D]
            moments["head"].add_moment(hidden)
            for rows in hidden.split(HEAD_ROWS):
                chances = model.logits(rows).softmax(-1)  # [rows, V]
                uncertainty.add(chances.sum(0) - chances.square().sum(0), len(rows))
    finally:
        for hook in hooks:
            hook.remove()
    found = {
        name: Statistics(
            second_moment=moments[name].value(name),
            difference_moment=differences[name].value(name) if name in differences else None,
            heads=model.config.n_head if name.endswith("attn.c_attn") else None,
        )
        for name in linears
    }
    return found | _of_embeddings(model, ids, moments["head"].value("lm_head"), uncertainty.value("lm_head"))


def _of_embeddings(model: GPT2, ids: Tensor, hidden: Tensor, uncertainty: Tensor) -> dict[str, Statistics]:
    """Return the statistics of the tables, whose rows are read, multiplied, or both."""
    vocabulary, width = model.config.vocab_size, model.config.n_embd
    as_read = torch.eye(width)
    # One more reading of every token, spread over all: the unseen ones matter a little too.
    read = (ids.flatten().bincount(minlength=vocabulary) + 1).double()
    read, multiplied = read / read.mean(), uncertainty.double().clamp_min(0)
    # A model that is certain of every token says nothing about the rows.
    multiplied = multiplied / multiplied.mean() if multiplied.mean() > 0 else torch.ones_like(multiplied)
    found = {"wpe": Statistics(second_moment=as_read)}
    if model.lm_head is None:
        weights = ((read + multiplied) / 2).float()
        moment = (hidden + hidden.diagonal().mean() * as_read) / 2
        return found | {"wte": Statistics(second_moment=moment, row_weights=weights)}
    return found | {
        "wte": Statistics(second_moment=as_read, row_weights=read.float()),
        "lm_head": Statistics(second_moment=hidden, row_weights=multiplied.float()),
    }


class _Mean:
    """A running mean over tokens, in fp64."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.count = 0

    def add(self, total: Tensor, count: int) -> None:
        self.total = total.double() if self.total is None else self.total + total
        self.count += count

    def add_moment(self, x: Tensor) -> None:
        """Add x x^T of every token x [..., in]."""
        flat = x.flatten(0, -2)  # [tokens, in]
        self.add(flat.T @ flat, len(flat))

    def add_differences(self, x: Tensor) -> None:
        """Add d d^T / 2 of every difference d between tokens of x [B, T, in] that are DISTANCES apart."""
        for distance in DISTANCES:
            if distance < x.shape[1]:
                self.add_moment((x[:, distance:] - x[:, :-distance]) / math.sqrt(2))

    def value(self, name: str) -> Tensor:
        if self.total is None:
            raise RuntimeError("the model multiplied nothing by this matrix")
        mean = (self.total / self.count).float()
        if not torch.isfinite(mean).all():
            raise ValueError(f"{name}: its inputs are too large to be squared in fp32")
        return mean


def _calling(add: Callable[[Tensor], None]) -> Callable[[nn.Module, tuple[Tensor]], None]:
    def hook(_module: nn.Module, arguments: tuple[Tensor]) -> None:
        add(arguments[0])

    return hook
