"""What a text says about every matrix: second moments of its inputs, and weights of the vocabulary's rows."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
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


def collect(model: GPT2, ids: Tensor, progress: Progress = silent) -> dict[str, Statistics]:
    """Return the statistics of every matrix by name, see `by_layer`."""
    return dict(by_layer(model, ids, model.matrices(), progress))


@torch.inference_mode()
def by_layer(
    model: GPT2, ids: Tensor, names: Collection[str], progress: Progress = silent
) -> Iterator[tuple[str, Statistics]]:
    """Yield the name and the statistics of every matrix of `names`, in the order in which the model reads them.

    Those of a layer are found when they are asked for, and no more than they are held.

    Args:
        model: the dense model, see `GPT2.expanded`.
        ids: tokens [rows, T].
        names: of matrices.
        progress: progress callback, once per layer.

    Raises:
        ValueError: if there are no tokens, or inputs are too large.
    """
    if ids.dim() != 2 or not ids.numel():
        raise ValueError(f"ids must have shape [rows, T] and not be empty, not {list(ids.shape)}")
    if not (left := set(names)):
        return
    states = [model.embedded(batch) for batch in ids.split(max(1, COLLECT_TOKENS // ids.shape[1]))]
    if "wpe" in left:
        left.remove("wpe")
        yield "wpe", Statistics(second_moment=torch.eye(model.config.n_embd))
    for i, block in enumerate(progress(model.h, label="Collecting statistics", total=len(model.h))):
        if not left:
            return
        linears = {f"h.{i}.{name}": module for name, module in block.named_modules() if isinstance(module, Linear)}
        found = _of_linears(block, states, {name: module for name, module in linears.items() if name in left})
        heads = {name: model.config.n_head for name in found if name.endswith("attn.c_attn")}
        yield from ((name, replace(one, heads=heads.get(name))) for name, one in found.items())
        left -= found.keys()
        del found
    if left:
        yield from ((name, one) for name, one in _of_tables(model, ids, states).items() if name in left)


def _of_linears(block: nn.Module, states: list[Tensor], linears: Mapping[str, Linear]) -> dict[str, Statistics]:
    """Return the statistics of linears of one layer, and put what it makes of the `states` in their place."""
    moments = {name: _Mean() for name in linears}
    differences = {name: _Mean() for name in linears if name.endswith("attn.c_attn") and states[0].shape[1] > 1}
    hooks = [linears[name].register_forward_pre_hook(_calling(mean.add_moment)) for name, mean in moments.items()]
    hooks += [linears[n].register_forward_pre_hook(_calling(mean.add_differences)) for n, mean in differences.items()]
    try:
        for k, state in enumerate(states):
            states[k] = block(state)
    finally:
        for hook in hooks:
            hook.remove()
    return {
        name: Statistics(
            second_moment=mean.value(name),
            difference_moment=differences[name].value(name) if name in differences else None,
        )
        for name, mean in moments.items()
    }


def _of_tables(model: GPT2, ids: Tensor, states: Iterable[Tensor]) -> dict[str, Statistics]:
    """Return the statistics of the tables, whose rows are read, multiplied, or both, for states of the last layer."""
    moment, uncertainty = _Mean(), _Mean()
    for state in states:
        hidden = model.ln_f(state).flatten(0, 1)  # [tokens, D]
        moment.add_moment(hidden)
        for rows in hidden.split(HEAD_ROWS):
            chances = model.logits(rows).softmax(-1)  # [rows, V]
            uncertainty.add(uncertainties(chances), len(rows))
    vocabulary, width = model.config.vocab_size, model.config.n_embd
    hidden, as_read = moment.value("lm_head"), torch.eye(width)
    read = times_read(ids, vocabulary)
    read, multiplied = read / read.mean(), uncertainty.value("lm_head").double().clamp_min(0)
    # A model that is certain of every token says nothing about the rows.
    multiplied = multiplied / multiplied.mean() if multiplied.mean() > 0 else torch.ones_like(multiplied)
    if model.lm_head is None:
        weights = ((read + multiplied) / 2).float()
        return {"wte": Statistics(second_moment=(hidden + hidden.diagonal().mean() * as_read) / 2, row_weights=weights)}
    return {
        "wte": Statistics(second_moment=as_read, row_weights=read.float()),
        "lm_head": Statistics(second_moment=hidden, row_weights=multiplied.float()),
    }


def times_read(ids: Tensor, vocabulary: int) -> Tensor:
    """Return how often every token is read in a text, and once more: the unseen ones matter a little too. fp64 [V]."""
    return (ids.flatten().bincount(minlength=vocabulary) + 1).double()


def uncertainties(chances: Tensor) -> Tensor:
    """Return p (1 - p) of every token [V], summed over positions [rows, V]."""
    return chances.sum(0) - chances.square().sum(0)


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
