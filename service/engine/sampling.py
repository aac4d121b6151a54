"""Choosing the next token of every row of a batch, from the model's logits.

The order is Hugging Face's and TGI's: repetition penalty, temperature, top-k, top-p, typical p, then the draw.
A draw is a number in [0, 1) that the row brings along, and picks the token whose share of the summed probabilities it
falls in.

Law: what a row gets depends on its own logits and choice only, never on the rows beside it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compressor.runtime._decoder import draw, judge

FOLDS = 64  # tokens, at most, that are one column where a bound of the best ones is looked for
COLDEST = 1e-30  # a lower temperature would be 0 in fp32
LARGEST = 1e30  # magnitude of a penalised score; its difference to any other is finite

Logits = NDArray[np.float32]
Ids = NDArray[np.integer]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to choose a token.

    Attributes:
        seed: of the draws; None always takes the best token (greedy).
        temperature: divides the logits, > 0.
        top_k: how many of the best tokens stay; None: all.
        top_p: the fewest best tokens stay whose probabilities add up to it, in (0, 1].
        typical_p: the most typical tokens of those stay whose probabilities add up to it, in (0, 1]; Meister et
            al., "Locally typical sampling", arXiv 2202.00666, section 4.
        repetition_penalty: see `penalised`; 1 is none.
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


def choose(logits: Logits, choices: Sequence[Choice], threads: int = 1) -> list[int]:
    """Return the next token of every row, given the model's logits [B, V]; of equally good ones that of smaller id.

    Args:
        logits: of the model; changed meanwhile, and afterwards as before.
        choices: how each row's token is chosen.
        threads: that compute.
    """
    logits = np.require(logits, np.float32, ["C", "W"])
    ways = [choice.how for choice in choices]
    heat = [0 if how.seed is None else max(how.temperature, COLDEST) for how in ways]
    chosen = np.empty(len(choices), np.int64)
    with _penalised(logits, choices):
        draw(
            logits,
            chosen,
            temperature=np.array(heat, np.float32),
            top_k=np.array([how.top_k or 0 for how in ways], np.int64),
            top_p=np.array([how.top_p for how in ways], np.float64),
            typical_p=np.array([how.typical_p for how in ways], np.float64),
            uniform=np.array([choice.uniform for choice in choices], np.float64),
            threads=threads,
            instructions=None,
        )
    found: list[int] = chosen.tolist()
    return found


@contextmanager
def _penalised(logits: Logits, choices: Sequence[Choice]) -> Iterator[None]:
    """Penalise what was seen, where that is wanted, for a while."""
    before = []
    for row, choice in zip(logits, choices, strict=True):
        if choice.how.repetition_penalty != 1:
            ids = np.array(choice.seen, np.intp)
            before.append((row, ids, row[ids]))
            row[ids] = penalised(row[ids], choice.how.repetition_penalty)
    try:
        yield
    finally:
        for row, ids, values in before:
            row[ids] = values


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


def penalised(logits: Logits, penalty: float) -> Logits:
    """Return logits [n] of tokens that were seen: less likely (penalty > 1) or more (penalty < 1).

    Reference: CTRL, arXiv 1909.05858, section 4.1, with negative logits multiplied as Hugging Face does.
    """
    factor = np.float32(min(max(penalty, 1 / LARGEST), LARGEST))  # others are 0 or infinite in fp32
    with np.errstate(over="ignore"):  # infinities are clipped
        found: Logits = np.where(logits < 0, logits * factor, logits / factor).clip(-LARGEST, LARGEST)
    return found


def likelihoods(logits: Logits, ids: Sequence[int], count: int, threads: int = 1) -> tuple[Logits, Ids, Logits]:
    """Return the model's own log-probability of one token per row [n], in nats, and the best tokens of each.

    Args:
        logits: of the model, before any warping [n, V].
        ids: one token per row.
        count: of the best tokens, whose ids and log-probabilities [n, count] are wanted.
        threads: that compute.
    """
    verdicts = np.empty((len(ids), 5))
    judge(np.ascontiguousarray(logits), np.array(ids, np.int64), verdicts, threads=threads)
    found = verdicts[:, 0].astype(np.float32)
    if not count:
        return found, np.empty((len(ids), 0), np.intp), np.empty((len(ids), 0), np.float32)
    best_ids = np.stack([best(row, count) for row in logits])  # [n, count]
    rows = np.arange(len(ids))
    beside = logits[rows[:, np.newaxis], best_ids] - logits[rows, ids][:, np.newaxis].astype(np.float64)
    return found, best_ids, (verdicts[:, :1] + beside).astype(np.float32)
