"""Continuous batching: the generations of one model write a token together in every step, and come and go between.

What a request gets never depends on its neighbours: a token's result is bitwise its own. So every step computes the
next token of all that write and the next tokens of those that read, up to a chunk of them.

A prompt that is scored is read in the same chunks. The logits behind its tokens take as long as reading them, or
longer: they are computed in tiles of a few rows, each of which counts against the chunk as if it were tokens.

A request has as many pages of the KV cache as it has tokens. When there are none left for the next one, the youngest
request is sent back to wait, and reads again what it knows.
"""

import heapq
import time
from collections.abc import Callable, Sequence
from itertools import accumulate, chain, islice
from math import nan
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from compressor.runtime.kv import PAGE_TOKENS
from service.engine.generation import Generation, Top
from service.engine.lanes import Lane
from service.engine.models import LoadedModel
from service.engine.pace import Pace
from service.engine.pages import Pool, pages_of
from service.engine.sampling import choose, likelihoods
from service.engine.speculation import Speculation
from service.metrics import Metrics
from service.settings import Settings

Hidden = NDArray[np.float32]  # states of tokens [T, D] or [B, D]
Logits = NDArray[np.float32]  # [B, V]
Found = tuple[int, float, Top]  # the next token, its log-probability and the best ones
TILE = 32  # rows; more are multiplied hardly faster, and their logits are megabytes


class Share(NamedTuple):
    """What the model reads next of a generation: up to `at_most` of its tokens, and those proposed behind them."""

    member: Generation
    at_most: int = 1
    proposed: Sequence[int] = ()

    @property
    def unread(self) -> list[int]:
        """These tokens."""
        return [*self.member.unread(self.at_most), *self.proposed]


class Batch(Lane[Generation]):
    """The generations of one model. A step writes one token of each, or several, and reads a chunk of prompts."""

    def __init__(
        self,
        model: LoadedModel,
        settings: Settings,
        metrics: Metrics,
        pool: Pool,
        send_back: Callable[[], Generation],
        speculation: Speculation | None = None,
    ) -> None:
        """Hold no generation.

        Args:
            model: that writes them.
            settings: all of them.
            metrics: where it reports.
            pool: where pages of the KV cache are from.
            send_back: takes the youngest generation of all models out of its batch, to wait; returns it.
            speculation: proposes tokens to the model, if there is a draft.
        """
        super().__init__(settings.max_batch)
        self._decoder = model.decoder
        self._chunk = settings.prefill_chunk
        self._pace = Pace(self._chunk)
        self._pages = pages_of(model.decoder, model.context, settings, pool)
        self._cache = self._pages.cache
        self._send_back = send_back
        self._free = list(range(self.slots))  # a heap: the lowest slots are used again first, so memory stays small
        row = model.decoder.head_cost
        self._tile = max(1, min(TILE, self._chunk // row))
        self._tile_cost = min(self._tile * row, self._chunk)
        self._steps = metrics.decode_steps.labels(model.name)
        self._rows = metrics.batch_size.labels(model.name)
        self._head_seconds = metrics.head_seconds(model.name, contracted=model.decoder.head.is_contracted)
        self._speculation = speculation
        self._queries = metrics.prefix_cache_queries.labels(model.name)
        self._hits = metrics.prefix_cache_hits.labels(model.name)
        held = [self._pages] if speculation is None else [self._pages, speculation.pages]
        usage = metrics.kv_cache_usage_ratio.labels(model.name)
        usage.set_function(lambda: sum(pages.held_bytes for pages in held) / pool.size_bytes)

    def join(self, request: Generation) -> bool:
        """Give a request a slot, and pages for what it knows; its neighbours keep one each for what they write next."""
        slot = self._free[0]
        found = self._find(request, slot)
        if not self._pages.extend(slot, request.known, spare=len(self.members)):
            self._pages.release(slot)
            request.read = 0
            return False
        heapq.heappop(self._free)
        request.started(slot)
        if not request.scoring:
            self._queries.inc(request.known)
            self._hits.inc(found)
        return super().join(request)

    def leave(self, request: Generation) -> None:
        super().leave(request)
        self._pages.release(request.slot)
        if self._speculation is not None:
            self._speculation.pages.release(request.slot)
        heapq.heappush(self._free, request.slot)
        if not self.members:
            self._rows.set(0)
            self._pace.pause()

    def _find(self, request: Generation, slot: int) -> int:
        """Take over what others have read of the same text, unless its prompt is to be scored; return how much."""
        if request.scoring:
            return 0
        found = self._pages.match(slot, request.ids[: request.known])
        request.read += found
        return found

    def advance(self) -> None:
        writers = self._with_pages([member for member in self.members if not member.reading])
        left = self._score_prompts()
        readers = [member for member in self.members if self._reads(member)]
        if writers:
            self._steps.inc()
            self._rows.set(len(writers))
        shares = self._shares(readers, min(left, self._pace.tokens) if writers else left)
        self._pace.stepping(writing=bool(writers), tokens=sum(share.at_most for share in shares))
        if self._speculation is None:
            self._advance([*map(Share, writers), *shares])
        else:
            self._speculate(self._speculation, writers, shares, alone=not readers and left == self._chunk)

    def _with_pages(self, writers: list[Generation]) -> list[Generation]:
        """Give each a page for the token that it reads next; return those that were not sent back meanwhile."""
        for writer in sorted(writers, key=lambda writer: writer.number):
            while writer.slot >= 0 and not self._pages.extend(writer.slot, writer.read + 1):
                self._send_back()
        return [writer for writer in writers if writer.slot >= 0]

    def _speculate(
        self, speculation: Speculation, writers: list[Generation], shares: list[Share], *, alone: bool
    ) -> None:
        """Advance like without a draft, and further where its proposals are the model's own tokens."""
        members = len(self.members)
        proposals = speculation.propose(writers, members)
        began = time.perf_counter()
        group = [Share(writer, 1, proposals.get(writer, ())) for writer in writers]
        self._advance([*map(self._with_room, group), *shares])
        speculation.stepped(len(writers), members, time.perf_counter() - began, alone=alone)

    def _with_room(self, share: Share) -> Share:
        """Return a share without what was proposed, if there are no pages for it."""
        tokens = share.member.read + 1 + len(share.proposed)
        return share if self._pages.extend(share.member.slot, tokens) else share._replace(proposed=())

    def _reads(self, member: Generation) -> bool:
        """Return whether the next thing to do is to read more of the prompt."""
        return member.read < member.known and not (member.scoring and member.scoring.ready(self._tile))

    def _score_prompts(self) -> int:
        """Score what has been read of prompts, in the order of arrival; return what it left of the chunk."""
        left = self._chunk
        for member in tuple(self.members):
            try:
                while left >= self._tile_cost and member.scoring and member.scoring.ready(self._tile):
                    member.scoring.score(self._tile, self._logits)
                    left -= self._tile_cost
                if member.scored_through:
                    self._finish_prompt(member)
            except Exception:
                self.fail(member)
        return left

    def _finish_prompt(self, member: Generation) -> None:
        """Write the first token behind a prompt that is read and scored, or end there."""
        assert member.scoring is not None  # noqa: S101 - it is scored
        hidden = member.scoring.last()
        if member.prompt.max_new_tokens:
            self._take(member, self._next([Share(member)], [hidden])[0])
        else:
            member.end_unwritten()
            self.leave(member)

    def _shares(self, readers: list[Generation], left: int) -> list[Share]:
        """Return how much of what is `left` of a chunk each reader gets, in the order of arrival."""
        shares = []
        for reader in readers:
            if not left:
                break
            self._hits.inc(self._find(reader, reader.slot))  # what another has read since
            count = min(left, reader.known - reader.read)
            if count:
                shares.append(Share(reader, count))
            left -= count
        return shares

    def _advance(self, group: list[Share]) -> None:
        """Let the model read the next tokens of every generation in `group`; each alone, if that fails together."""
        if not group:
            return
        unread = [share.unread for share in group]
        try:
            found = self._compute(group, unread)
        except Exception:
            for share in group:
                self._cache.lengths[share.member.slot] = share.member.read
            self._advance_one_by_one(group)
            return
        for share, ids, tokens in zip(group, unread, found, strict=True):
            share.member.read += len(ids)
            if share.proposed:
                self._judge(share, len(tokens) - 1)
            if len(ids) > 1 or not share.member.read % PAGE_TOKENS:
                self._pages.remember(share.member.slot, [*share.member.ids, *(token for token, *_ in tokens)])
            if tokens:
                self._take(share.member, tokens)

    def _advance_one_by_one(self, group: list[Share]) -> None:
        """Advance each alone after a failure, which may be another's, or that of what was proposed."""
        if len(group) == 1 and not group[0].proposed:
            self.fail(group[0].member)
            return
        for share in group:
            self._advance([share if len(group) > 1 else share._replace(proposed=())])

    def _judge(self, share: Share, accepted: int) -> None:
        """Forget the proposed tokens behind the first `accepted` ones."""
        assert self._speculation is not None  # noqa: S101 - it has proposed them
        member = share.member
        member.read -= len(share.proposed) - accepted
        self._cache.lengths[member.slot] = member.read
        self._speculation.judged(member, len(share.proposed), accepted)

    def _take(self, member: Generation, tokens: Sequence[Found]) -> None:
        """Give a generation its next tokens, up to one that ends it."""
        try:
            ended = any(member.take(*token) for token in tokens)
        except Exception:
            self.fail(member)
        else:
            if ended:
                self.leave(member)

    def _compute(self, group: list[Share], unread: list[list[int]]) -> list[list[Found]]:
        """Return what comes next in each: nothing in the middle of a prompt, and behind one that is to be scored."""
        hidden = self._read(unread, [share.member.slot for share in group])
        scored = {i: member.scoring for i, (member, *_) in enumerate(group) if member.scoring}
        ends = [share.member.read + len(unread[i]) >= share.member.known for i, share in enumerate(group)]
        through = [i for i, end in enumerate(ends) if end and i not in scored]
        found: list[list[Found]] = [[] for _ in group]
        if through:
            behind = [hidden[i][-1 - len(group[i].proposed) :] for i in through]
            for i, tokens in zip(through, self._next([group[i] for i in through], behind), strict=True):
                found[i] = tokens
        for i, scores in scored.items():
            scores.add(hidden[i])
        return found

    def _next(self, group: list[Share], hidden: list[Hidden]) -> list[list[Found]]:
        """Return the next tokens of each, with log-probabilities and best ones, given states behind its last token.

        Args:
            group: the generations, and what was proposed for each.
            hidden: behind the last token and every proposed one, [1 + proposed, D] of each generation.
        """
        logits = self._logits(np.concatenate(hidden))
        chosen, written = self._choose(group, logits)
        top = max(share.member.top for share in group)
        if not top and not any(share.member.scored for share in group):
            return [[(token, nan, ()) for token in tokens] for tokens in chosen]
        behind = logits if len(written) == len(logits) else logits[written]
        ids = list(chain(*chosen))
        logprobs, *best = (part.tolist() for part in likelihoods(behind, ids, top, self._decoder.threads))
        tops = (tuple(zip(*row, strict=True)) for row in zip(*best, strict=True))
        found = iter(zip(chain(*chosen), logprobs, tops, strict=True))
        return [list(islice(found, len(tokens))) for tokens in chosen]

    def _choose(self, group: list[Share], logits: Logits) -> tuple[list[list[int]], list[int]]:
        """Return the next tokens of each, up to the first that was not proposed, and the rows of all these.

        Args:
            group: the generations, and what was proposed for each.
            logits: behind the last token of each, and behind every proposed one, were those before it written.
        """
        sizes = [1 + len(share.proposed) for share in group]
        starts = [end - size for end, size in zip(accumulate(sizes), sizes, strict=True)]
        choices = [
            share.member.choice(share.proposed[:n])
            for share, size in zip(group, sizes, strict=True)
            for n in range(size)
        ]
        tokens = choose(logits, choices, self._decoder.threads)
        found: list[list[int]] = []
        written: list[int] = []
        for share, start in zip(group, starts, strict=True):
            own = tokens[start : start + 1 + len(share.proposed)]
            agreed = next((n for n, token in enumerate(share.proposed) if own[n] != token), len(share.proposed))
            found.append(own[: agreed + 1])
            written += range(start, start + agreed + 1)
        return found, written

    def _logits(self, hidden: Hidden) -> Logits:
        with self._head_seconds.time():
            return self._decoder.logits(hidden)

    def _read(self, unread: list[list[int]], slots: list[int]) -> Sequence[Hidden]:
        """Return the hidden states after the unread tokens [T, D] of every slot, all computed side by side."""
        counts, ids = np.array([len(ids) for ids in unread]), np.array(list(chain(*unread)))
        hidden = self._decoder.read(ids, self._cache, np.array(slots), counts, hidden=True).hidden  # [N, D]
        assert hidden is not None  # noqa: S101 - it is asked for
        return [hidden[end - len(ids) : end] for ids, end in zip(unread, accumulate(map(len, unread)), strict=True)]
