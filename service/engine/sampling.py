"""Choosing the next token of every row of a batch, from the model's logits.

The order is Hugging Face's and TGI's: repetition penalty, temperature, top-k, top-p, typical p, then the draw.
A draw is a number in [0, 1) that the row brings along, and picks the token whose share of the summed probabilities it
falls in.

Law: what a row gets depends on its own logits and choice only, never on the rows beside it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf, log

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

COLDEST = 1e-30  # a lower temperature would be 0 in fp32
LARGEST = 1e30  # magnitude of a penalised score; its difference to any other is finite
BLOCK = 256  # tokens that a draw from the whole vocabulary skips at a time
RARE = (1e-4, 1e-5, 0.0)  # what top-p and typical p leave is looked for among the tokens so probable first

Weights = NDArray[np.floating]
Ids = NDArray[np.integer]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to choose a token.

    Attributes:
        seed: of the draws; None always takes the best token (greedy).
        temperature: divides the logits, > 0.
        top_k: how many of the best tokens stay; None: all.
        top_p: the fewest best tokens stay whose probabilities add up to it, in (0, 1].
        typical_p: the most typical tokens of those stay whose probabilities add up to it, in (0, 1]; see `typical`.
        repetition_penalty: see `penalise_repetition`; 1 is none.
        repeatable: whether the client chose the seed, or none is needed; a seed that was drawn comes only once.
    """

    seed: int | None = None
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    repeatable: bool = True


@dataclass(frozen=True)
class Choice:
    """One row's choice.

    Attributes:
        how: its parameters.
        uniform: the draw, in [0, 1); not looked at where `how` has no seed.
        seen: tokens that a repetition penalty applies to.
    """

    how: Sampling
    uniform: float = 0.0
    seen: Sequence[int] = ()


def choose(logits: Tensor, choices: Sequence[Choice]) -> list[int]:
    """Return the next token of every row, given the model's logits [B, V]. Rows of one kind are worked on together."""
    logits = _penalised(logits, choices)
    kinds: dict[int | None, list[int]] = {}
    for row, choice in enumerate(choices):
        kinds.setdefault(_kind(choice.how, logits.shape[-1]), []).append(row)
    chosen = [0] * len(choices)
    for kind, rows in kinds.items():
        alike = logits if len(rows) == len(choices) else logits[rows]
        for row, token in zip(rows, _choose_alike(alike, [choices[row] for row in rows], kind), strict=True):
            chosen[row] = int(token)
    return chosen


GREEDY = 0


def _kind(how: Sampling, vocabulary: int) -> int | None:
    """Return how many of the best tokens have to be found: 1.. with top-k, GREEDY, or None for all."""
    if how.seed is None:
        return GREEDY
    return None if how.top_k is None or how.top_k >= vocabulary else how.top_k


def _choose_alike(logits: Tensor, choices: Sequence[Choice], kind: int | None) -> Iterable[int]:
    if kind == GREEDY:
        best_ids: Ids = logits.numpy().argmax(-1)  # 30 times faster than torch's
        return best_ids
    temperatures = torch.tensor([[max(choice.how.temperature, COLDEST)] for choice in choices])  # [B, 1]
    if kind is None:
        odds = ((logits - logits.amax(-1, keepdim=True)) / temperatures).softmax(-1).numpy()  # [B, V]
        return [_draw_from_all(row, choice) for row, choice in zip(odds, choices, strict=True)]
    best, ids = logits.topk(kind)  # [B, k], the best first
    odds = ((best - best[:, :1]) / temperatures).softmax(-1).numpy()
    columns = _draw_from_best(odds, choices)
    for row, choice in enumerate(choices):
        if choice.how.typical_p < 1:
            columns[row] = _draw_from_some(odds[row], choice)
    return ids.numpy()[range(len(choices)), columns]


def _draw_from_best(odds: Weights, choices: Sequence[Choice]) -> Ids:
    """Draw a column [B] per row of probabilities [B, k], the best first, of which top-p leaves the first few."""
    rows = range(len(choices))
    p = np.array([[choice.how.top_p if choice.how.top_p < 1 else inf] for choice in choices])  # [B, 1]
    sums = odds.cumsum(-1, dtype=np.float64)  # [B, k]
    sizes = np.minimum((sums < p).sum(-1), odds.shape[-1] - 1)
    totals = sums[rows, sizes][:, np.newaxis]  # [B, 1]
    uniforms = np.array([[choice.uniform] for choice in choices])
    last = (sums < totals).sum(-1)  # with a share
    columns: Ids = np.minimum((sums <= uniforms * totals).sum(-1), last)
    return columns


def _draw_from_all(odds: Weights, choice: Choice) -> int:
    """Draw from the probabilities [V] of all tokens."""
    if choice.how.top_p < 1 or choice.how.typical_p < 1:
        return _draw_from_some(odds, choice)
    blocks = np.add.reduceat(odds, np.arange(0, len(odds), BLOCK), dtype=np.float64)  # [V / BLOCK]
    block = _draw(blocks, choice.uniform)
    rest = (choice.uniform * blocks.sum() - blocks[:block].sum()) / blocks[block]  # the draw within the block
    return block * BLOCK + _draw(odds[block * BLOCK : (block + 1) * BLOCK], rest)


def _draw_from_some(odds: Weights, choice: Choice) -> int:
    """Draw from what top-p and typical p leave of the probabilities [V]."""
    how = choice.how
    inside = nucleus(odds, how.top_p) if how.top_p < 1 else np.flatnonzero(odds)
    if how.typical_p < 1:
        inside = inside[odds[inside] > 0]
        inside = inside[typical(odds[inside], how.typical_p)]
    return int(inside[_draw(odds[inside], choice.uniform)])


def nucleus(odds: Weights, p: float) -> Ids:
    """Return the fewest tokens whose probabilities add up to at least `p`; of equal ones the first.

    Reference: Holtzman et al., "The curious case of neural text degeneration", arXiv 1904.09751, section 3.1.
    """
    for rare in RARE:
        ids = np.flatnonzero(odds >= rare)
        likely = odds[ids]
        if likely.sum(dtype=np.float64) >= p:
            break
    ordered = np.sort(likely)[::-1]  # several times faster than sorting ids
    size = min(int(np.searchsorted(ordered.cumsum(dtype=np.float64), p)) + 1, len(ids))
    inside = likely > ordered[size - 1]
    equals = np.flatnonzero(likely == ordered[size - 1])
    inside[equals[: size - int(inside.sum())]] = True
    found: Ids = ids[inside]
    return found


def typical(odds: Weights, mass: float) -> Ids:
    """Return the tokens whose surprise -log p is nearest to the expected one, until they have `mass` of all `odds` > 0.

    Those that are as near as the last one belong to it.
    Reference: Meister et al., "Locally typical sampling", arXiv 2202.00666, section 4.
    """
    shares = odds.astype(np.float64) / odds.sum(dtype=np.float64)
    surprise = -np.log(shares)
    entropy = float((shares * surprise).sum())
    distance = abs(surprise - entropy)
    for rare in RARE:
        limit = -log(rare) - entropy if rare else inf  # of the distance; beyond it are the rarer ones
        near = np.flatnonzero(distance <= limit)
        if shares[near].sum() >= mass:
            break
    near = near[distance[near].argsort()]
    last = min(int(np.searchsorted(shares[near].cumsum(), mass)), len(near) - 1)
    found: Ids = np.flatnonzero(distance <= distance[near[last]])
    return found


def _draw(weights: Weights, uniform: float) -> int:
    """Return the index in whose share of the sum `uniform` falls; never one that weighs nothing."""
    sums = weights.cumsum(dtype=np.float64)
    last = int(np.searchsorted(sums, sums[-1]))  # the last with a share
    return min(int(np.searchsorted(sums, uniform * sums[-1], side="right")), last)


def _penalised(logits: Tensor, choices: Sequence[Choice]) -> Tensor:
    rows = [row for row, choice in enumerate(choices) if choice.how.repetition_penalty != 1]
    if not rows:
        return logits
    logits = logits.clone()
    for row in rows:
        logits[row] = penalise_repetition(
            logits[row], torch.tensor(choices[row].seen), choices[row].how.repetition_penalty
        )
    return logits


def penalise_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make the tokens `seen` [..., n] less likely (penalty > 1) or more (penalty < 1).

    Reference: CTRL, arXiv 1909.05858, section 4.1, with negative logits multiplied as Hugging Face does.
    """
    found = logits.gather(-1, seen)  # [..., n]
    penalty = min(max(penalty, 1 / LARGEST), LARGEST)  # others are 0 or infinite in fp32
    found = torch.where(found < 0, found * penalty, found / penalty).clamp(-LARGEST, LARGEST)
    return logits.scatter(-1, seen, found)


def log_probabilities(logits: Tensor, ids: Sequence[int]) -> list[float]:
    """Return the model's own log-probability of one token per row, before any warping, in nats."""
    found: list[float] = logits.log_softmax(-1)[range(len(ids)), ids].tolist()
    return found


def likelihoods(logits: Tensor, ids: Sequence[int], count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the log-probability of one token per row [n], and ids and log-probabilities of the best [n, count]."""
    logprobs = logits.log_softmax(-1)
    best, best_ids = logprobs.topk(count)
    return logprobs[range(len(ids)), ids], best_ids.int(), best


def best_tokens(logits: Tensor, count: int) -> list[tuple[tuple[int, float], ...]]:
    """Return the likeliest tokens of every row and their log-probabilities in nats, the best first."""
    if not count:
        return [()] * len(logits)
    best, ids = logits.log_softmax(-1).topk(count)
    return [tuple(zip(*row, strict=True)) for row in zip(ids.tolist(), best.tolist(), strict=True)]
