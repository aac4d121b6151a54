"""Continuous batching: the generations of one model write a token together in every step, and come and go between.

What a request gets never depends on its neighbours: a token's result is bitwise its own. So every step computes the
next token of all that write and the next tokens of those that read, up to a chunk of them.

A prompt that is scored is read in the same chunks. The logits behind its tokens take as long as reading them, or
longer: they are computed in tiles of a few rows, each of which counts against the chunk as if it were tokens.
"""

import heapq
from collections.abc import Iterator, Sequence
from itertools import chain
from math import nan

import numpy as np
from numpy.typing import NDArray

from compressor.runtime.model import Cache
from service.engine.generation import Generation, Top
from service.engine.lanes import Lane
from service.engine.models import LoadedModel
from service.engine.sampling import choose, likelihoods
from service.metrics import Metrics
from service.settings import Settings

Hidden = NDArray[np.float32]  # states of tokens [T, D] or [B, D]
Logits = NDArray[np.float32]  # [B, V]
Share = tuple[Generation, int]  # and the most tokens of it that the model reads next
Found = tuple[int, float, Top]  # the next token, its log-probability and the best ones
TILE = 32  # rows; more are multiplied hardly faster, and their logits are megabytes


class Batch(Lane[Generation]):
    """The generations of one model. A step writes one token of each, and reads a chunk of prompts."""

    def __init__(self, model: LoadedModel, settings: Settings, metrics: Metrics) -> None:
        super().__init__(settings.max_batch)
        self._decoder = model.decoder
        self._chunk = settings.prefill_chunk
        self._cache = Cache(model.decoder.config, self.slots, model.context, settings.kv_dtype)
        self._free = list(range(self.slots))  # a heap: the lowest slots are used again first, so memory stays small
        row = model.decoder.head_cost
        self._tile = max(1, min(TILE, self._chunk // row))
        self._tile_cost = min(self._tile * row, self._chunk)
        self._steps = metrics.decode_steps.labels(model.name)
        self._rows = metrics.batch_size.labels(model.name)
        self._head_seconds = metrics.head_seconds(model.name, contracted=model.decoder.head.is_contracted)
        metrics.kv_cache_bytes.labels(model.name).set(self._cache.num_bytes)
        usage = metrics.kv_cache_usage_ratio.labels(model.name)
        usage.set_function(lambda: self._cache.used_bytes / self._cache.num_bytes)

    def join(self, request: Generation) -> None:
        request.slot = heapq.heappop(self._free)
        self._cache.reset(request.slot)
        request.started()
        super().join(request)

    def leave(self, request: Generation) -> None:
        super().leave(request)
        self._cache.reset(request.slot)
        heapq.heappush(self._free, request.slot)
        if not self.members:
            self._rows.set(0)

    def advance(self) -> None:
        writers = [(member, 1) for member in self.members if not member.reading]
        left = self._score_prompts()
        readers = [member for member in self.members if self._reads(member)]
        if writers:
            self._steps.inc()
            self._rows.set(len(writers))
        self._advance(writers + self._shares(readers, left))

    def _reads(self, member: Generation) -> bool:
        """Return whether the next thing to do is to read more of the prompt."""
        return member.read < len(member.prompt.ids) and not (member.scores and member.scores.ready(self._tile))

    def _score_prompts(self) -> int:
        """Score what has been read of prompts, in the order of arrival; return what it left of the chunk."""
        left = self._chunk
        for member in tuple(self.members):
            try:
                while left >= self._tile_cost and member.scores and member.scores.ready(self._tile):
                    member.scores.score(self._tile, self._logits)
                    left -= self._tile_cost
                if member.scored_through:
                    self._finish_prompt(member)
            except Exception:
                self.fail(member)
        return left

    def _finish_prompt(self, member: Generation) -> None:
        """Write the first token behind a prompt that is read and scored, or end there."""
        assert member.scores is not None  # noqa: S101 - it is scored
        hidden = member.scores.last()
        if member.prompt.max_new_tokens:
            self._take(member, *self._next([member], hidden)[0])
        else:
            member.end_unwritten()
            self.leave(member)

    def _shares(self, readers: list[Generation], left: int) -> list[Share]:
        """Return how much of what is `left` of a chunk each reader gets, in the order of arrival."""
        shares = []
        for reader in readers:
            count = min(left, len(reader.prompt.ids) - reader.read)
            if count:
                shares.append((reader, count))
            left -= count
        return shares

    def _advance(self, group: list[Share]) -> None:
        """Let the model read the next tokens of every generation in `group`; each alone, if that fails together."""
        if not group:
            return
        unread = [member.unread(at_most) for member, at_most in group]
        try:
            tokens = self._compute([member for member, _ in group], unread)
        except Exception:
            for member, _ in group:
                self._cache.lengths[member.slot] = member.read
            if len(group) == 1:
                self.fail(group[0][0])
                return
            for share in group:
                self._advance([share])
            return
        for (member, _), ids, token in zip(group, unread, tokens, strict=True):
            member.read += len(ids)
            if token is not None:
                self._take(member, *token)

    def _take(self, member: Generation, token_id: int, logprob: float, top: Top) -> None:
        try:
            ended = member.take(token_id, logprob, top)
        except Exception:
            self.fail(member)
        else:
            if ended:
                self.leave(member)

    def _compute(self, group: list[Generation], unread: list[list[int]]) -> list[Found | None]:
        """Return what comes next in each, or None in the middle of a prompt and behind one that is to be scored."""
        hidden = self._read(unread, [member.slot for member in group])
        scored = {i: member.scores for i, member in enumerate(group) if member.reading and member.scores}
        ends = [member.read + len(unread[i]) >= len(member.prompt.ids) for i, member in enumerate(group)]
        through = [i for i, end in enumerate(ends) if end and i not in scored]
        found: Iterator[Found] = iter(())
        if through:
            found = iter(self._next([group[i] for i in through], np.stack([hidden[i][-1] for i in through])))
        for i, scores in scored.items():
            scores.add(hidden[i])
        return [next(found) if i in through else None for i in range(len(group))]

    def _next(self, group: list[Generation], hidden: Hidden) -> list[Found]:
        """Return the next token, its log-probability and the best ones behind each hidden state [B, D]."""
        logits = self._logits(hidden)
        chosen = choose(logits, [member.choice() for member in group])
        top = max(member.top for member in group)
        if not top and not any(member.scored for member in group):
            return [(token, nan, ()) for token in chosen]
        logprobs, *best = (part.tolist() for part in likelihoods(logits, chosen, top))
        tops = [tuple(zip(*row, strict=True)) for row in zip(*best, strict=True)]
        return list(zip(chosen, logprobs, tops, strict=True))

    def _logits(self, hidden: Hidden) -> Logits:
        with self._head_seconds.time():
            return self._decoder.logits(hidden)

    def _read(self, unread: list[list[int]], slots: list[int]) -> Sequence[Hidden]:
        """Return the hidden states after the unread tokens [T, D] of every slot, all computed side by side."""
        counts, ids = np.array([len(ids) for ids in unread]), np.array(list(chain(*unread)))
        hidden = self._decoder.read(ids, self._cache, np.array(slots), counts, hidden=True).hidden  # [N, D]
        assert hidden is not None  # noqa: S101 - it is asked for
        return np.split(hidden, counts.cumsum()[:-1])


def kv_row_bytes(model: LoadedModel, settings: Settings) -> int:
    """Return the bytes of one full slot of a model's KV cache."""
    return model.context * model.decoder.kv_bytes_per_token(settings.kv_dtype)
