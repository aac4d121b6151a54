"""Choosing the next token: pure functions over scores [..., V].

The order is Hugging Face's and TGI's: repetition penalty, temperature, top-k, top-p, then the draw.
"""

from dataclasses import dataclass
from math import inf

import torch
from torch import Generator, Tensor

COLDEST = 1e-30  # a lower temperature would be 0 in fp32


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to choose a token.

    Attributes:
        seed: of the draws; None always takes the best token (greedy).
        temperature: divides the scores, > 0.
        top_k: how many of the best tokens stay; None: all.
        top_p: the fewest best tokens stay whose probabilities add up to it, in (0, 1].
        repetition_penalty: see `penalise_repetition`; 1 is none.
    """

    seed: int | None = None
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    repetition_penalty: float = 1.0


def penalise_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make the tokens `seen` [..., n] less likely (penalty > 1) or more (penalty < 1).

    Reference: CTRL, arXiv 1909.05858, section 4.1, with negative scores multiplied as Hugging Face does.
    """
    scores = logits.gather(-1, seen)  # [..., n]
    scores = torch.where(scores < 0, scores * penalty, scores / penalty)
    return logits.scatter(-1, seen, scores)


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Divide the scores' distances from the best one, which stays finite however cold it gets."""
    return (logits - logits.amax(-1, keepdim=True)) / max(temperature, COLDEST)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Keep exactly the k best tokens (or all V); the others get -inf."""
    values, ids = logits.topk(min(k, logits.shape[-1]), dim=-1)  # [..., k]
    return torch.full_like(logits, -inf).scatter(-1, ids, values)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the fewest best tokens whose probabilities add up to at least p; the others get -inf."""
    values, ids = logits.sort(dim=-1, descending=True, stable=True)  # [..., V]
    probabilities = values.softmax(-1)
    mass_before = probabilities.cumsum(-1) - probabilities
    outside = mass_before >= p
    outside[..., 0] = False
    return torch.full_like(logits, -inf).scatter(-1, ids, values.masked_fill(outside, -inf))


def warp(logits: Tensor, sampling: Sampling) -> Tensor:
    """Return the scores [..., V] to draw from: temperature, top-k, top-p."""
    warped = apply_temperature(logits, sampling.temperature)
    if sampling.top_k is not None:
        warped = keep_top_k(warped, sampling.top_k)
    return keep_top_p(warped, sampling.top_p) if sampling.top_p < 1 else warped


def draw(logits: Tensor, generator: Generator) -> Tensor:
    """Draw one token per row from scores [..., V]; returns ids [...]."""
    rows = logits.softmax(-1).reshape(-1, logits.shape[-1])  # [rows, V]
    return torch.multinomial(rows, 1, generator=generator).reshape(logits.shape[:-1])


def choose(logits: Tensor, seen: Tensor, sampling: Sampling, generator: Generator | None) -> Tensor:
    """Return the next token [...] after `seen` [..., n], given the model's scores [..., V].

    Without a generator that is the best one.
    """
    if sampling.repetition_penalty != 1:
        logits = penalise_repetition(logits, seen, sampling.repetition_penalty)
    return logits.argmax(-1) if generator is None else draw(warp(logits, sampling), generator)


def log_probability(logits: Tensor, ids: Tensor) -> Tensor:
    """Return the model's own log-probability [...] of tokens [...], before any warping, in nats."""
    return logits.log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
