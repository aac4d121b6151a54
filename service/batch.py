"""Continuous batching: the generations of one model write a token together in every step, and come and go between.

What a request is told never depends on its neighbours. Where one kernel runs all layers (`GPT2.packs`), a token's
result is bitwise its own, so every step computes the next token of all who write and the next tokens of those who
read, up to a chunk of them. Elsewhere a prompt is read alone, in chunks that begin at multiples of the chunk's length,
so that its matrix products always have the same shapes. Only the writing is shared, by as many rows as there happen to
be; and where a kernel rounds a row differently in batches of different sizes, as torch's fp32 product does for fewer
than some four rows, small batches are filled up with rows that nobody reads.
"""

import heapq
from itertools import chain
from math import nan

import torch
import torch.nn.functional as F
from torch import Tensor

from compressor.gpt2 import GPT2
from compressor.kv_cache import KVCache
from service.generation import Generation, Top
from service.lanes import Lane
from service.metrics import Metrics
from service.models import LoadedModel
from service.sampling import best_tokens, choose, log_probabilities
from service.settings import Settings

Share = tuple[Generation, int]  # and the most tokens of it that the model reads next
KV_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Batch(Lane[Generation]):
    """The generations of one model. A step writes one token of each, and reads a chunk of prompts."""

    def __init__(self, model: LoadedModel, settings: Settings, metrics: Metrics) -> None:
        super().__init__(settings.max_batch)
        self._gpt2 = model.gpt2
        self._chunk = settings.prefill_chunk
        self._cache = model.gpt2.new_cache(self.slots, model.context, dtype=KV_DTYPES[settings.kv_dtype])
        self._free = list(range(self.slots))  # a heap: the lowest slots are used again first, so memory stays small
        self._packs = model.gpt2.packs(self._cache)
        self._fewest_rows = fewest_rows(model.gpt2, self.slots) if settings.reproducible else 1
        self._steps = metrics.decode_steps.labels(model.name)
        self._rows = metrics.batch_size.labels(model.name)
        self._head_seconds = metrics.head_seconds(model)
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
        readers = [member for member in self.members if member.reading]
        writers = [member for member in self.members if not member.reading]
        if writers:
            self._steps.inc()
            self._rows.set(len(writers))
        if self._packs:
            self._advance([(member, 1) for member in writers] + self._shares(readers))
            return
        if writers:
            self._advance([(member, 1) for member in writers])
        if readers:
            self._advance([(readers[0], self._chunk)])

    def _shares(self, readers: list[Generation]) -> list[Share]:
        """Return how much of a chunk each reader gets, who came first first."""
        left, shares = self._chunk, []
        for reader in readers:
            count = min(left, len(reader.prompt.ids) - reader.read)
            if count:
                shares.append((reader, count))
            left -= count
        return shares

    def _advance(self, group: list[Share]) -> None:
        """Let the model read the next tokens of every generation in `group`; each alone, if that fails together."""
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

    def _compute(self, group: list[Generation], unread: list[list[int]]) -> list[tuple[int, float, Top] | None]:
        """Return the next token, its log-probability and the best ones of each, or None in the middle of a prompt."""
        hidden = self._read(unread, [member.slot for member in group])  # [B, D]
        through = [i for i, member in enumerate(group) if member.read + len(unread[i]) >= len(member.prompt.ids)]
        if not through:
            return [None] * len(group)
        hidden = hidden if len(through) == len(group) else hidden[torch.tensor(through)]
        missing = max(self._fewest_rows - len(through), 0)
        with self._head_seconds.time():
            logits = self._gpt2.logits(F.pad(hidden, (0, 0, 0, missing)))  # [through or more, V]
        found = iter(self._choose([group[i] for i in through], logits[: len(through)].float()))
        return [next(found) if i in through else None for i in range(len(group))]

    def _choose(self, group: list[Generation], logits: Tensor) -> list[tuple[int, float, Top]]:
        chosen = choose(logits, [member.choice() for member in group])
        scored = any(member.scored for member in group)
        logprobs = log_probabilities(logits, chosen) if scored else [nan] * len(group)
        tops = best_tokens(logits, max(member.top for member in group))
        return list(zip(chosen, logprobs, tops, strict=True))

    def _read(self, unread: list[list[int]], slots: list[int]) -> Tensor:
        """Return the hidden state after the last of the unread tokens [B, D] of every slot.

        Where the batch is too small, rows that nobody reads are computed, too: of other slots, which do not grow.
        """
        if self._packs:
            return self._read_packed(unread, torch.tensor(slots))
        # All of one length here: a chunk of one prompt, or a token each.
        padding = 0 if len(unread[0]) > 1 else max(self._fewest_rows - len(slots), 0)
        others = [slot for slot in range(self.slots) if slot not in slots][:padding]
        counts = torch.tensor([len(unread[0])] * len(slots) + [0] * padding)
        ids, rows = torch.tensor([*unread, *[[0]] * padding]), torch.tensor(slots + others)
        return self._gpt2(ids, self._cache, counts=counts, rows=rows)[: len(slots), -1]  # type: ignore[no-any-return]

    def _read_packed(self, unread: list[list[int]], slots: Tensor) -> Tensor:
        """Return the hidden state after the last of the unread tokens [B, D], all tokens computed side by side."""
        counts = torch.tensor([len(ids) for ids in unread])
        hidden = self._gpt2.packed(torch.tensor(list(chain(*unread))), self._cache, slots, counts)  # [N, D]
        return hidden[counts.cumsum(0) - 1]


@torch.inference_mode()
def fewest_rows(gpt2: GPT2, most: int) -> int:
    """Return the smallest batch from which on, up to `most` rows, batches of every size round every row alike."""
    cache = gpt2.new_cache(most, min(most + 1, gpt2.config.n_positions))
    slots = torch.arange(most)
    for slot in slots.tolist():  # rows of different lengths, like real ones
        if length := slot % cache.capacity:
            ids = torch.arange(length).unsqueeze(0) % gpt2.config.vocab_size  # [1, T]
            gpt2(ids, cache, rows=slots[slot : slot + 1])
    full = _scores(gpt2, cache, slots)
    fewest = most
    if torch.equal(_scores(gpt2, cache, slots.flip(0)).flip(0), full):
        while fewest > 1 and torch.equal(_scores(gpt2, cache, slots[: fewest - 1]), full[: fewest - 1]):
            fewest -= 1
    return fewest


def _scores(gpt2: GPT2, cache: KVCache, slots: Tensor) -> Tensor:
    """Return what the model says [B, V] after one more token in these slots, which it then forgets."""
    lengths = cache.lengths.clone()
    ids = (slots + 1).unsqueeze(1) % gpt2.config.vocab_size  # [B, 1]
    hidden: Tensor = gpt2(ids, cache, rows=slots)
    cache.lengths.copy_(lengths)
    return gpt2.logits(hidden[:, -1])


def kv_row_bytes(model: LoadedModel, settings: Settings) -> int:
    """Return the bytes of one full slot of a model's KV cache."""
    return model.context * model.gpt2.config.kv_bytes_per_token(KV_DTYPES[settings.kv_dtype])
