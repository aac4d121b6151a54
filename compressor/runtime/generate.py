"""Plain batched generation, for the command line, golden values and text sampled from a model."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from compressor.errors import check_range
from compressor.progress import Progress, silent
from compressor.runtime.kv import Cache
from compressor.runtime.model import Floats, Ids, Model
from compressor.runtime.payoff import NEAR, Outcome, Payoff

MOST_PROPOSED = 5  # tokens at a time

Chosen = NDArray[np.integer]  # [B]
Choose = Callable[[Floats, int], Chosen]  # of logits [B, V], and how many tokens each row has written before


@dataclass(frozen=True)
class Draft:
    """What proposes tokens.

    Attributes:
        model: of the same vocabulary as that which writes.
        payoff: chooses how many tokens; by default from what it measures.
    """

    model: Model
    payoff: Payoff = field(default_factory=lambda: Payoff(MOST_PROPOSED))


def generate(
    model: Model,
    prompts: Ids,
    new_tokens: int,
    *,
    temperature: float,
    seed: int = 0,
    progress: Progress = silent,
    draft: Draft | None = None,
) -> Ids:
    """Return the prompts, each followed by `new_tokens` generated ones: [B, T + new_tokens].

    Args:
        model: the model.
        prompts: tokens [B, T], T >= 1.
        new_tokens: how many to add to each row.
        temperature: 0 takes the likeliest token; above, tokens are sampled.
        seed: of the sampling.
        progress: progress callback, once per token.
        draft: proposes tokens to the model where B is 1; the result is the same.

    Raises:
        ValueError: if the result does not fit the context, a number is out of range, or logits are not finite.
    """
    batch, length = prompts.shape
    check_range("max_new_tokens", new_tokens, 0, model.config.n_positions - length)
    check_range("temperature", temperature, 0, 100)
    check_range("seed", seed, 0, 2**63 - 1)
    if not new_tokens:
        return prompts
    choose = _chooser(temperature, seed)
    ids = np.empty((batch, length + new_tokens), np.int64)
    ids[:, :length] = prompts
    written: Iterator[Chosen] | Iterator[int]
    if draft is not None and batch == 1:
        written = _Speculation(model, draft, length + new_tokens, choose).tokens(prompts[0])
    else:
        written = _tokens(model, prompts, length + new_tokens, choose)
    places = progress(range(length, length + new_tokens), label="Generating", total=new_tokens)
    for at, new in zip(places, written, strict=False):
        ids[:, at] = new
    return ids


def _tokens(model: Model, prompts: Ids, total: int, choose: Choose) -> Iterator[Chosen]:
    """Yield the next token of each row [B], until texts have `total` tokens."""
    batch, length = prompts.shape
    cache, slots = Cache(model.config, batch, total), np.arange(batch)
    new = prompts
    for written in range(total - length):
        count = new.shape[1]
        last = np.arange(1, batch + 1) * count - 1
        logits = model.read(new.flatten(), cache, slots, np.full(batch, count), wanted=last).logits
        chosen = choose(_finite(logits), written)
        yield chosen
        new = chosen[:, None].astype(np.int64)  # [B, 1]


class _Speculation:
    """Writes one text like `_tokens`, several tokens in a step where a draft has proposed the model's own."""

    def __init__(self, model: Model, draft: Draft, total: int, choose: Choose) -> None:
        self._model, self._draft, self._payoff = model, draft.model, draft.payoff
        self._choose, self._total = choose, total
        self._cache = Cache(model.config, 1, total)
        self._draft_cache = Cache(draft.model.config, 1, min(total, draft.model.config.n_positions))

    def tokens(self, prompt: Ids) -> Iterator[int]:
        """Yield the next tokens of a prompt [T]."""
        ids: list[int] = prompt.tolist()
        length = len(ids)
        read, draft_read = self._cache.lengths, self._draft_cache.lengths
        while len(ids) < self._total:
            draft_read[0] = min(draft_read[0], read[0])  # what was proposed and not accepted is forgotten
            began = time.perf_counter()
            proposed = self._proposed(ids, len(ids) - length) if read[0] else []
            drafted = time.perf_counter()
            unread = ids[read[0] :] + proposed
            logits = _read(self._model, unread, self._cache, 1 + len(proposed))
            new = self._written(logits, proposed, len(ids) - length)
            read[0] -= len(proposed) + 1 - len(new)
            seconds = time.perf_counter() - drafted
            if proposed:
                outcome = Outcome(len(proposed), len(new) - 1)
                self._payoff.checked(1, [outcome], drafted - began, seconds)
            elif len(unread) == 1:
                self._payoff.stepped(1, seconds)
            yield from new
            ids += new

    def _written(self, logits: Floats, proposed: list[int], written: int) -> list[int]:
        """Return the model's tokens, up to the first that is not the one proposed, from their logits [1 + g, V]."""
        tokens: list[int] = []
        for place in range(len(logits)):
            tokens.append(int(self._choose(_finite(logits[place : place + 1]), written + place)[0]))
            if tokens != proposed[: place + 1]:
                break
        return tokens

    def _proposed(self, ids: list[int], written: int) -> list[int]:
        """Return what the draft proposes behind a text, if anything."""
        room = min(self._total - len(ids) - 1, self._draft_cache.capacity - len(ids) + 1)
        unread = ids[self._draft_cache.lengths[0] :]
        count = min(room, self._payoff.count(1, len(unread)))
        if count < 1 or not self._payoff.catches_up(1, len(unread), self._total - len(ids)):
            return []
        if len(unread) > NEAR:
            began = time.perf_counter()
            _read(self._draft, unread[:-1], self._draft_cache, 1)
            self._payoff.caught_up(len(unread) - 1, time.perf_counter() - began)
            unread = unread[-1:]
        proposed: list[int] = []
        for place in range(count):
            logits = _read(self._draft, proposed[-1:] or unread, self._draft_cache, 1)
            if not np.isfinite(logits).all():
                break
            proposed.append(int(self._choose(logits, written + place)[0]))
        return proposed


def _read(model: Model, ids: list[int], cache: Cache, wanted: int) -> Floats:
    """Have a model read the next tokens of slot 0; return the logits behind the last `wanted` ones [wanted, V]."""
    last = np.arange(len(ids) - wanted, len(ids))
    logits = model.read(np.array(ids), cache, np.array([0]), np.array([len(ids)]), wanted=last).logits
    assert logits is not None  # noqa: S101 - they are asked for
    return logits


def _finite(logits: Floats | None) -> Floats:
    if logits is None or not np.isfinite(logits).all():
        raise ValueError("model: its logits are not finite")
    return logits


def _chooser(temperature: float, seed: int) -> Choose:
    """Return what chooses tokens: the likeliest ones, or those in whose share of the summed odds a draw falls.

    A draw belongs to a row and a place in its text, however often and for whichever model it is used.
    """
    random = np.random.default_rng(seed)
    draws: list[NDArray[np.float64]] = []  # [B] for every place that was asked for

    def choose(logits: Floats, place: int) -> Chosen:
        if temperature == 0:
            best: Chosen = logits.argmax(-1)
            return best
        while len(draws) <= place:
            draws.append(random.random(len(logits)))
        odds = np.exp((logits - logits.max(-1, keepdims=True)) / np.float64(temperature)).cumsum(-1)
        marks = draws[place] * odds[:, -1]
        return np.array([np.searchsorted(row, mark, side="right") for row, mark in zip(odds, marks, strict=True)])

    return choose
