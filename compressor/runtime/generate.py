"""Plain batched generation, for the command line, golden values and text sampled from a model."""

import numpy as np
from numpy.typing import NDArray

from compressor.errors import check_range
from compressor.progress import Progress, silent
from compressor.runtime.model import Cache, Floats, Ids, Model


def generate(
    model: Model, prompts: Ids, new_tokens: int, *, temperature: float, seed: int = 0, progress: Progress = silent
) -> Ids:
    """Return the prompts, each followed by `new_tokens` generated ones: [B, T + new_tokens].

    Args:
        model: the model.
        prompts: tokens [B, T], T >= 1.
        new_tokens: how many to add to each row.
        temperature: 0 takes the likeliest token; above, tokens are sampled.
        seed: of the sampling.
        progress: progress callback, once per token.

    Raises:
        ValueError: if the result does not fit the context, a number is out of range, or logits are not finite.
    """
    batch, length = prompts.shape
    check_range("max_new_tokens", new_tokens, 0, model.config.n_positions - length)
    check_range("temperature", temperature, 0, 100)
    check_range("seed", seed, 0, 2**63 - 1)
    if not new_tokens:
        return prompts
    random = np.random.default_rng(seed)
    cache = Cache(model.config, batch, length + new_tokens)
    slots, ids = np.arange(batch), np.empty((batch, length + new_tokens), np.int64)
    ids[:, :length] = prompts
    new = prompts
    for at in progress(range(length, length + new_tokens), label="Generating", total=new_tokens):
        count = new.shape[1]
        last = np.arange(1, batch + 1) * count - 1
        logits = model.read(new.flatten(), cache, slots, np.full(batch, count), wanted=last).logits
        ids[:, at] = _chosen(_finite(logits), temperature, random)
        new = ids[:, at : at + 1]
    return ids


def _finite(logits: Floats | None) -> Floats:
    if logits is None or not np.isfinite(logits).all():
        raise ValueError("model: its logits are not finite")
    return logits


def _chosen(logits: Floats, temperature: float, random: np.random.Generator) -> NDArray[np.integer]:
    """Return a token per row of logits [B, V]: the one in whose share of the summed odds a draw falls."""
    if temperature == 0:
        best: NDArray[np.integer] = logits.argmax(-1)
        return best
    odds = np.exp((logits - logits.max(-1, keepdims=True)) / np.float64(temperature)).cumsum(-1)
    draws = random.random(len(logits)) * odds[:, -1]
    return np.array([np.searchsorted(row, draw, side="right") for row, draw in zip(odds, draws, strict=True)])
