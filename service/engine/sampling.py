"""Choosing the next token of every row of a batch, from the model's logits.

The order is Hugging Face's and TGI's: repetition penalty, temperature, top-k, top-p, typical p, then the draw.
A draw is a number in [0, 1) that the row brings along, and picks the token whose share of the summed probabilities it
falls in.

Law: what a row gets depends on its own logits and choice only, never on the rows beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, log

import numpy as np
from numpy.typing import NDArray

FOLDS = 64  # tokens, at most, that are one column where a bound of the best ones is looked for
COLDEST = 1e-30  # a lower temperature would be 0 in fp32
LARGEST = 1e30  # magnitude of a penalised score; its difference to any other is finite
BLOCK = 256  # tokens that a draw from the whole vocabulary skips at a time
RARE = (1e-4, 1e-5, 0.0)  # what top-p and typical p leave is looked for among the tokens so probable first

Logits = NDArray[np.float32]
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


def choose(logits: Logits, choices: Sequence[Choice]) -> list[int]:
    """Return the next token of every row, given the model's logits [B, V]; of equally good ones that of smaller id."""
    return [_choose(row, choice) for row, choice in zip(logits, choices, strict=True)]


def _choose(logits: Logits, choice: Choice) -> int:
    """Return the next token, given its logits [V]: row by row, what is computed with stays in the CPU's cache."""
    how = choice.how
    if how.repetition_penalty != 1:
        logits = penalise_repetition(logits, choice.seen, how.repetition_penalty)
    if how.seed is None:
        return int(logits.argmax())
    if how.top_k is None or how.top_k >= len(logits):
        return _draw_from(_weights(logits, how), choice)
    ids = best(logits, how.top_k)
    return int(ids[_draw_from(_weights(logits[ids], how), choice)])


def best(logits: Logits, count: int) -> Ids:
    """Return the `count` best tokens, the best first, given all logits [V]; of equal ones the smallest id first.

    Folded, the logits have at least as many columns as tokens are wanted: the best ones of these columns are as many
    tokens, so that the worst of them bounds what is wanted.
    """
    if not count:
        return np.empty(0, np.intp)
    folds = min(FOLDS, max(1, len(logits) // (16 * count)))
    columns = len(logits) // folds
    bests = logits[: folds * columns].reshape(folds, columns).max(0)
    bound = np.partition(bests, -count)[-count]
    ids = np.flatnonzero(logits >= bound)
    found: Ids = ids[np.argsort(-logits[ids], kind="stable")[:count]]
    return found


def _weights(logits: Logits, how: Sampling) -> Logits:
    """Return the odds of tokens at the temperature, the best one's 1, given their logits."""
    weights: Logits = logits - logits.max()
    if how.temperature != 1:
        with np.errstate(over="ignore"):  # to minus infinity, whose share is none
            weights /= np.float32(max(how.temperature, COLDEST))
    np.exp(weights, out=weights)
    return weights


def _draw_from(weights: Weights, choice: Choice) -> int:
    """Return the place of the token that is drawn, given the weights of some tokens or all."""
    if choice.how.top_p < 1 or choice.how.typical_p < 1:
        return _draw_from_some(weights / weights.sum(), choice)
    blocks = np.add.reduceat(weights, np.arange(0, len(weights), BLOCK), dtype=np.float64)  # [V / BLOCK]
    block = _draw(blocks, choice.uniform)
    rest = (choice.uniform * blocks.sum() - blocks[:block].sum()) / blocks[block]  # the draw within the block
    return block * BLOCK + _draw(weights[block * BLOCK : (block + 1) * BLOCK], rest)


def _draw_from_some(odds: Weights, choice: Choice) -> int:
    """Draw from what top-p and typical p leave of the probabilities."""
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


def penalise_repetition(logits: Logits, seen: Sequence[int], penalty: float) -> Logits:
    """Return logits [V] in which the tokens `seen` are less likely (penalty > 1) or more (penalty < 1).

    Reference: CTRL, arXiv 1909.05858, section 4.1, with negative logits multiplied as Hugging Face does.
    """
    ids = np.array(seen, np.intp)
    found = logits[ids]
    factor = np.float32(min(max(penalty, 1 / LARGEST), LARGEST))  # others are 0 or infinite in fp32
    with np.errstate(over="ignore"):  # infinities are clipped
        found = np.where(found < 0, found * factor, found / factor).clip(-LARGEST, LARGEST)
    penalised = logits.copy()
    penalised[ids] = found
    return penalised


def log_probabilities(logits: Logits, ids: Sequence[int] | Ids) -> Logits:
    """Return the model's own log-probabilities of tokens [n], before any warping, in nats, given all logits [V]."""
    most = logits.max()
    odds = logits - most
    total = np.exp(odds, out=odds).sum()
    found: Logits = logits[ids] - most - np.log(total)
    return found


def likelihoods(logits: Logits | Sequence[Logits], ids: Sequence[int], count: int) -> tuple[Logits, Ids, Logits]:
    """Return the log-probability of one token per row [n], and ids and log-probabilities of the best [n, count]."""
    best_ids = np.stack([best(row, count) for row in logits])  # [n, count]
    wanted = np.column_stack([ids, best_ids])  # [n, 1 + count]
    found = np.stack([log_probabilities(*row) for row in zip(logits, wanted, strict=True)])
    return found[:, 0], best_ids, found[:, 1:]
