"""Speculative decoding: a small model proposes tokens, which the model reads in one step.

At each place the model chooses its own token with the random number of that place, as it always does. The draft has
proposed one with the same number, and the step counts as far as the two are the same, and one token further. So a
generation has the tokens, log-probabilities and random numbers that it has without a draft, and more of them per step.
"""

import time
from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np

from compressor.runtime.model import Floats
from compressor.runtime.payoff import MOST_TEXTS, NEAR, Outcome, Payoff
from service.engine.generation import Generation
from service.engine.models import LoadedModel
from service.engine.pages import Pool, pages_of
from service.engine.sampling import choose
from service.metrics import Metrics
from service.process.logs import LOG
from service.settings import Settings

Proposals = Mapping[Generation, Sequence[int]]


class Speculation:
    """What a draft proposes to one model.

    Attributes:
        pages: of keys and values of what the draft has read. Only as far as a slot's generation was read by the model,
            too, are these tokens surely its own.
    """

    def __init__(
        self,
        draft: LoadedModel,
        target: LoadedModel,
        settings: Settings,
        metrics: Metrics,
        pool: Pool,
        payoff: Payoff | None = None,
    ) -> None:
        """Have proposed nothing yet.

        Args:
            draft: that proposes; of the same vocabulary as `target`.
            target: that writes.
            settings: all of them.
            metrics: that hear of it.
            pool: where its pages of the KV cache are from.
            payoff: chooses how many tokens to propose; by default from what it measures.
        """
        self.pages = pages_of(draft.decoder, draft_context(draft, target), settings, pool)
        self._cache = self.pages.cache
        self._decoder = draft.decoder
        self._name = target.name
        self._chunk = settings.prefill_chunk
        self._payoff = payoff or Payoff(settings.draft_tokens)
        self._metrics = metrics
        self._outcomes: list[Outcome] = []  # of the latest proposals
        self._drafting_seconds = 0.0
        self._broken = False
        metrics.start_speculation(target.name, settings.draft_tokens)

    def propose(self, writers: Sequence[Generation], members: int) -> Proposals:
        """Return what the draft proposes for generations that write; nothing where it does not pay or cannot yet.

        Args:
            writers: the generations; for each, the model is about to read the last token.
            members: how many requests the batch has, with those whose prompts are being read.
        """
        self._outcomes.clear()
        if not writers or members > MOST_TEXTS or self._broken:
            return {}
        for writer in writers:  # what was proposed and not accepted is forgotten
            self._cache.lengths[writer.slot] = min(self._read(writer), writer.read)
        count = self._payoff.count(len(writers), sum(map(self._behind, writers)))
        if not count:
            return {}
        wanted = {
            writer: room
            for writer in writers
            if (room := min(count, self._room(writer))) > 0
            and self.pages.extend(writer.slot, len(writer.ids) + room - 1)  # it does not read the last one
        }
        try:
            self._catch_up([writer for writer in wanted if self._catches_up(writer, len(writers))])
            return self._proposals({writer: n for writer, n in wanted.items() if self._behind(writer) <= NEAR})
        except Exception:  # texts are written without it
            LOG.exception("the draft failed and is not asked again", extra={"model": self._name})
            self._broken = True
            return {}

    def judged(self, writer: Generation, proposed: int, accepted: int) -> None:
        """So many tokens were proposed for a generation, and it wrote the first `accepted` of them."""
        self._outcomes.append(Outcome(proposed, accepted))
        self._metrics.drafts.labels(self._name).inc()
        self._metrics.draft_tokens.labels(self._name).inc(proposed)
        self._metrics.accepted_tokens.labels(self._name).inc(accepted)
        for position in range(accepted):
            self._metrics.accepted_tokens_per_pos.labels(self._name, str(position)).inc()

    def stepped(self, writers: int, members: int, seconds: float, *, alone: bool) -> None:
        """A step of the model is over.

        Args:
            writers: generations that it gave a token to.
            members: requests in the batch.
            seconds: that it took, after the proposals were there.
            alone: whether it read nothing else.
        """
        if not writers or members > MOST_TEXTS:
            return
        if self._outcomes:
            self._payoff.checked(writers, self._outcomes, self._drafting_seconds, seconds if alone else None)
        elif alone:
            self._payoff.stepped(writers, seconds)

    def _read(self, writer: Generation) -> int:
        return int(self._cache.lengths[writer.slot])

    def _behind(self, writer: Generation) -> int:
        """Return how many tokens of a generation the draft has not read; at least 1."""
        return len(writer.ids) - self._read(writer)

    def _room(self, writer: Generation) -> int:
        """Return how many tokens may be proposed: one more is written, and the draft does not read the last one."""
        return min(writer.left - 1, self._cache.capacity - len(writer.ids) + 1)

    def _catches_up(self, writer: Generation, writers: int) -> bool:
        behind = self._behind(writer)
        return behind > NEAR and self._payoff.catches_up(writers, behind, writer.left)

    def _catch_up(self, writers: Sequence[Generation]) -> None:
        """Read up to a chunk of the tokens that the draft has not read, all but the last one of each generation."""
        left = self._chunk
        for writer in writers:
            start = self._read(writer)
            ids = writer.ids[start : min(len(writer.ids) - 1, start + left)]
            left -= len(ids)
            if ids:
                began = time.perf_counter()
                self._decoder.read(np.array(ids), self._cache, np.array([writer.slot]), np.array([len(ids)]))
                self._payoff.caught_up(len(ids), time.perf_counter() - began)

    def _proposals(self, wanted: Mapping[Generation, int]) -> Proposals:
        """Return as many tokens as are wanted for each generation, which the draft has nearly caught up with."""
        began = time.perf_counter()
        proposed: dict[Generation, list[int]] = {writer: [] for writer in wanted}
        unread = [writer.ids[self._read(writer) :] for writer in wanted]
        for place in range(max(wanted.values(), default=0)):
            group = [writer for writer, count in wanted.items() if count > place]
            if place:
                unread = [proposed[writer][-1:] for writer in group]
            logits = self._step(group, unread)
            choices = [writer.choice(proposed[writer]) for writer in group]
            chosen = choose(logits, choices, self._decoder.threads)
            for writer, token_id in zip(group, chosen, strict=True):
                proposed[writer].append(token_id)
        self._drafting_seconds = time.perf_counter() - began
        return proposed

    def _step(self, group: Sequence[Generation], unread: Sequence[Sequence[int]]) -> Floats:
        """Have the draft read tokens of each generation; return the logits behind the last one of each [B, V]."""
        counts = np.array([len(ids) for ids in unread])
        slots = np.array([writer.slot for writer in group])
        ids = np.array(list(chain(*unread)))
        logits = self._decoder.read(ids, self._cache, slots, counts, wanted=counts.cumsum() - 1).logits
        assert logits is not None  # noqa: S101 - they are asked for
        return logits


def draft_context(draft: LoadedModel, target: LoadedModel) -> int:
    """Return how many tokens of a text a draft reads: beyond its own context it proposes nothing."""
    return min(draft.context, target.context)
