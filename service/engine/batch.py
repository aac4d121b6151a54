"""Continuous batching: the generations of one model write a token together in every step, and come and go between.

What a request gets never depends on its neighbours. Where one kernel runs all layers (`GPT2.packs`), a token's
result is bitwise its own, so every step computes the next token of all that write and the next tokens of those that
read, up to a chunk of them. Elsewhere a prompt is read alone, in chunks that begin at multiples of the chunk's length,
so that its matrix products always have the same shapes. Only the writing is shared, by as many rows as there happen to
be; and where a kernel rounds a row differently in batches of different sizes, as torch's fp32 product does for fewer
than some four rows, small batches are filled up with rows that are not used.

A prompt that is scored is read in the same chunks. The logits behind its tokens take as long as reading them, or
longer: they are computed in tiles of a few rows, each of which counts against the chunk as if it were tokens.
"""

import heapq
from collections.abc import Iterator, Sequence
from itertools import chain
from math import ceil, nan, prod

import torch
import torch.nn.functional as F
from torch import Tensor

from compressor.runtime.codecs import Coded
from compressor.runtime.formats import Dense
from compressor.runtime.gpt2 import GPT2
from compressor.runtime.kv_cache import KVCache
from service.engine.generation import Generation, Top
from service.engine.lanes import Lane
from service.engine.models import LoadedModel
from service.engine.sampling import best_tokens, choose, log_probabilities
from service.metrics import Metrics
from service.settings import Settings

Share = tuple[Generation, int]  # and the most tokens of it that the model reads next
Found = tuple[int, float, Top]  # the next token, its log-probability and the best ones
TILE = 32  # rows; more are multiplied hardly faster, and their logits are megabytes
FLOAT_COST = 6  # values that the kernels multiply by while torch does by one in fp32
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
        row = head_cost(model.gpt2)
        self._tile = max(1, min(TILE, self._chunk // row))
        self._tile_cost = min(self._tile * row, self._chunk)
        self._steps = metrics.decode_steps.labels(model.name)
        self._rows = metrics.batch_size.labels(model.name)
        self._head_seconds = metrics.head_seconds(model.name, contracted=model.gpt2.head.is_contracted)
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
        if self._packs:
            self._advance(writers + self._shares(readers, left))
            return
        self._advance(writers)
        if left == self._chunk:
            self._advance([(reader, self._chunk) for reader in readers[:1]])

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
            found = iter(self._next([group[i] for i in through], torch.stack([hidden[i][-1] for i in through])))
        for i, scores in scored.items():
            scores.add(hidden[i])
        return [next(found) if i in through else None for i in range(len(group))]

    def _next(self, group: list[Generation], hidden: Tensor) -> list[Found]:
        """Return the next token, its log-probability and the best ones behind each hidden state [B, D]."""
        missing = max(self._fewest_rows - len(group), 0)
        logits = self._logits(F.pad(hidden, (0, 0, 0, missing)))  # [B or more, V]
        return self._choose(group, logits[: len(group)].float())

    def _logits(self, hidden: Tensor) -> Tensor:
        with self._head_seconds.time():
            return self._gpt2.logits(hidden)

    def _choose(self, group: list[Generation], logits: Tensor) -> list[Found]:
        chosen = choose(logits, [member.choice() for member in group])
        scored = any(member.scored for member in group)
        logprobs = log_probabilities(logits, chosen) if scored else [nan] * len(group)
        tops = best_tokens(logits, max(member.top for member in group))
        return list(zip(chosen, logprobs, tops, strict=True))

    def _read(self, unread: list[list[int]], slots: list[int]) -> Sequence[Tensor]:
        """Return the hidden states after the unread tokens [T, D] of every slot.

        Where the batch is too small, rows that are not used are computed, too: of other slots, which do not grow.
        """
        if self._packs:
            return self._read_packed(unread, torch.tensor(slots))
        # All of one length here: a chunk of one prompt, or a token each.
        padding = 0 if len(unread[0]) > 1 else max(self._fewest_rows - len(slots), 0)
        others = [slot for slot in range(self.slots) if slot not in slots][:padding]
        counts = torch.tensor([len(unread[0])] * len(slots) + [0] * padding)
        ids, rows = torch.tensor([*unread, *[[0]] * padding]), torch.tensor(slots + others)
        return self._gpt2(ids, self._cache, counts=counts, rows=rows)[: len(slots)].unbind()  # type: ignore[no-any-return]

    def _read_packed(self, unread: list[list[int]], slots: Tensor) -> Sequence[Tensor]:
        """Return the hidden states after the unread tokens [T, D] of every slot, all computed side by side."""
        counts, ids = [len(ids) for ids in unread], torch.tensor(list(chain(*unread)))
        hidden = self._gpt2.packed(ids, self._cache, slots, torch.tensor(counts))  # [N, D]
        found: Sequence[Tensor] = hidden.split(counts)
        return found


@torch.inference_mode()
def fewest_rows(gpt2: GPT2, most: int) -> int:
    """Return the smallest batch from which on, up to `most` rows, batches of every size round every row alike."""
    cache = gpt2.new_cache(most, min(most + 1, gpt2.config.n_positions))
    slots = torch.arange(most)
    for slot in slots.tolist():  # rows of different lengths, like real ones
        if length := slot % cache.capacity:
            ids = torch.arange(length).unsqueeze(0) % gpt2.config.vocab_size  # [1, T]
            gpt2(ids, cache, rows=slots[slot : slot + 1])
    full = _logits_of(gpt2, cache, slots)
    fewest = most
    if torch.equal(_logits_of(gpt2, cache, slots.flip(0)).flip(0), full):
        while fewest > 1 and torch.equal(_logits_of(gpt2, cache, slots[: fewest - 1]), full[: fewest - 1]):
            fewest -= 1
    return fewest


def _logits_of(gpt2: GPT2, cache: KVCache, slots: Tensor) -> Tensor:
    """Return what the model says [B, V] after one more token in these slots, which it then forgets."""
    lengths = cache.lengths.clone()
    ids = (slots + 1).unsqueeze(1) % gpt2.config.vocab_size  # [B, 1]
    hidden: Tensor = gpt2(ids, cache, rows=slots)
    cache.lengths.copy_(lengths)
    return gpt2.logits(hidden[:, -1])


def head_cost(gpt2: GPT2) -> int:
    """Return about how many tokens the blocks read while the head is multiplied by one row; at least 1."""
    matrices = gpt2.matrices()
    head = gpt2.head
    blocks = [part for name, form in matrices.items() if name.startswith("h.") for part in form.modules()]
    work = sum(prod(part.shape) * _cost(part.kernel is not None) for part in blocks if isinstance(part, Coded))
    return ceil(prod(head.shape) * _cost(isinstance(head, Dense) and head.matrix.kernel is not None) / work)


def _cost(kernels: bool) -> int:
    """Return how long a product by one value takes, in those of the kernels."""
    return 1 if kernels else FLOAT_COST


def kv_row_bytes(model: LoadedModel, settings: Settings) -> int:
    """Return the bytes of one full slot of a model's KV cache."""
    return model.context * model.gpt2.config.kv_bytes_per_token(KV_DTYPES[settings.kv_dtype])
