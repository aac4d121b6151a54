"""Writing the continuation of one prompt, a token per step."""

import secrets
from dataclasses import dataclass
from typing import Literal

import torch

from compressor.gpt2 import KVCache
from service.jobs import Job
from service.metrics import Metrics, RequestClock
from service.models import LoadedModel
from service.sampling import Sampling, choose, log_probability
from service.streaming import TextStream

FinishReason = Literal["length", "eos_token", "stop_sequence"]
FINISHED_REASON: dict[FinishReason, str] = {"length": "length", "eos_token": "stop", "stop_sequence": "stop"}
DRAWN_SEED_BITS = 53  # survives JSON readers that keep numbers as doubles


def draw_seed() -> int:
    """Return a seed for a request that has none."""
    return secrets.randbits(DRAWN_SEED_BITS)


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What to generate.

    Attributes:
        model: that writes.
        ids: the prompt, at least one token.
        max_new_tokens: at least 1; with the prompt at most the model's context.
        sampling: how tokens are chosen.
        stops: strings that end the text, which they are not part of.
    """

    model: LoadedModel
    ids: tuple[int, ...]
    max_new_tokens: int
    sampling: Sampling
    stops: tuple[str, ...] = ()


@dataclass(frozen=True)
class End:
    """How a generation ended.

    Attributes:
        reason: why.
        text: all of it.
    """

    reason: FinishReason
    text: str


@dataclass(frozen=True)
class Token:
    """One generated token.

    Attributes:
        id: its number.
        text: what it released; the texts of all tokens make up the whole, so that it is empty for
            half a character and for what may become a stop string.
        logprob: the model's own log-probability, in nats.
        special: whether it is a special token, such as the end of the text.
        end: comes with the last token.
    """

    id: int
    text: str
    logprob: float
    special: bool
    end: End | None


class Generation(Job[Token]):
    """Writes the continuation of one prompt. Its generator and KV cache are its own.

    Attributes:
        prompt: what it continues.

    Law: the same prompt gives the same events, whatever else the engine does.
    """

    def __init__(self, prompt: Prompt, metrics: Metrics) -> None:
        super().__init__(prompt.model.name)
        self.prompt = prompt
        self._clock = RequestClock(metrics, self.model_name)
        self._stream = TextStream(prompt.stops)
        self._text: list[str] = []
        self._ids = list(prompt.ids)
        self._cache: KVCache | None = None
        self._generator: torch.Generator | None = None

    @property
    def _generated(self) -> int:
        return len(self._ids) - len(self.prompt.ids)

    def step(self) -> bool:
        if self._cache is None:
            self._cache = self._start()
        token_id, logprob = self._next_token(self._cache)
        self._ids.append(token_id)
        self._clock.token()
        words = self.prompt.model.vocabulary
        text = self._stream.push(words.bytes[token_id])
        reason = self._finish_reason(token_id)
        if reason is not None:
            text += self._stream.finish()
        self._text.append(text)
        end = None if reason is None else self._end(reason)
        self.mailbox.put(Token(token_id, text, logprob, token_id in words.special, end))
        if end is not None:
            self.mailbox.put(None)
        return end is not None

    def abort(self) -> None:
        self._clock.aborted()
        super().abort()

    def _end(self, reason: FinishReason) -> End:
        self._clock.finished(FINISHED_REASON[reason], len(self.prompt.ids))
        return End(reason, "".join(self._text))

    def _start(self) -> KVCache:
        self._clock.started()
        prompt = self.prompt
        if prompt.sampling.seed is not None:
            self._generator = torch.Generator().manual_seed(prompt.sampling.seed)
        return prompt.model.gpt2.new_cache(1, len(prompt.ids) + prompt.max_new_tokens - 1)  # the last is never read

    def _next_token(self, cache: KVCache) -> tuple[int, float]:
        gpt2 = self.prompt.model.gpt2
        seen = torch.tensor([self._ids])  # [1, n]
        unread = seen[:, -1:] if self._generated else seen
        logits = gpt2.logits(gpt2(unread, cache)[:, -1])  # [1, V]
        chosen = choose(logits, seen, self.prompt.sampling, self._generator)  # [1]
        return int(chosen), float(log_probability(logits, chosen))

    def _finish_reason(self, token_id: int) -> FinishReason | None:
        if token_id == self.prompt.model.eos_id:
            return "eos_token"
        if self._stream.stopped:
            return "stop_sequence"
        return "length" if self._generated == self.prompt.max_new_tokens else None
