"""Choosing the next token of every row of a batch, from the model's logits.

The order is Hugging Face's and TGI's, and vLLM's for what they lack or do later: bias, penalties and bans (see
`adjustments`), temperature, min-p, top-k, top-p, typical p, then the draw.
A draw is a number in [0, 1) that the row brings along, and picks the token whose share of the summed probabilities it
falls in.

Law: what a row gets depends on its own logits and choice only, never on the rows beside it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from compressor.runtime._decoder import draw, judge
from service.engine.adjustments import Adjustments, Kept, restore

FOLDS = 64  # tokens, at most, that are one column where a bound of the best ones is looked for
COLDEST = 1e-30  # a lower temperature would be 0 in fp32
AS_THEY_ARE = Adjustments()
MOST_BEST = 2**53  # as many as a double counts; no vocabulary has more

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
        min_p: before all these, tokens stay that have at least this share of the best one's probability, in [0, 1].
        adjustments: what is done to the logits before.
        repeatable: whether the client chose the seed, or none is needed; a seed that was drawn comes only once.
    """

    seed: int | None = None
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    typical_p: float = 1.0
    min_p: float = 0.0
    adjustments: Adjustments = AS_THEY_ARE
    repeatable: bool = True

    @cached_property
    def numbers(self) -> tuple[float, ...]:
        """What `draw` takes of it, in the order of its arguments."""
        heat = 0 if self.seed is None else max(self.temperature, COLDEST)
        numbers = (heat, min(self.top_k or 0, MOST_BEST), self.top_p, self.typical_p, self.min_p)
        return tuple(map(float, numbers))


@dataclass(frozen=True)
class Choice:
    """One row's choice.

    Attributes:
        how: its parameters.
        uniform: the draw, in [0, 1); not looked at where `how` has no seed.
        seen: the tokens before, which penalties apply to.
        prompt_tokens: how many of these are the prompt.
    """

    how: Sampling
    uniform: float = 0.0
    seen: Sequence[int] = ()
    prompt_tokens: int = 0


def choose(logits: Logits, choices: Sequence[Choice], threads: int = 1) -> list[int]:
    """Return the next token of every row, given the model's logits [B, V]; of equally good ones that of smaller id.

    Args:
        logits: of the model; changed meanwhile, and afterwards as before.
        choices: how each row's token is chosen.
        threads: that compute.
    """
    logits = np.require(logits, np.float32, ["C", "W"])
    rows = np.array([(*choice.how.numbers, choice.uniform) for choice in choices], np.float64).reshape(-1, 6)
    temperature, top_k, top_p, typical_p, min_p, uniform = np.ascontiguousarray(rows.T)
    chosen = np.empty(len(choices), np.int64)
    with _adjusted(logits, choices):
        draw(
            logits,
            chosen,
            temperature=temperature.astype(np.float32),
            top_k=top_k.astype(np.int64),
            top_p=top_p,
            typical_p=typical_p,
            min_p=min_p,
            uniform=uniform,
            threads=threads,
            instructions=None,
        )
    found: list[int] = chosen.tolist()
    return found


@contextmanager
def _adjusted(logits: Logits, choices: Sequence[Choice]) -> Iterator[None]:
    """Adjust logits, where that is wanted, for a while."""
    before: list[tuple[Logits, list[Kept]]] = []
    try:
        for i, choice in enumerate(choices):
            if choice.how.adjustments.needed:
                before.append((logits[i], []))
                choice.how.adjustments.apply(logits[i], choice.seen, choice.prompt_tokens, before[-1][1])
        yield
    finally:
        for row, kept in before:
            restore(row, kept)


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
