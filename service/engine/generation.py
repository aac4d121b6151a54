"""Writing the continuation of one prompt: what a request knows, without the model's part of it."""

import secrets
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import nan
from random import Random
from typing import Literal

from service.engine.jobs import Request
from service.engine.models import LoadedModel
from service.engine.prompt_scores import PromptScores, Scores
from service.engine.sampling import Choice, Sampling
from service.engine.streaming import TextStream
from service.metrics import Metrics, RequestClock

Top = tuple[tuple[int, float], ...]  # ids and log-probabilities
FinishReason = Literal["length", "eos_token", "stop_sequence"]
Finished = Literal["length", "stop"]  # in the words of OpenAI and vLLM
FINISHED_REASON: dict[FinishReason, Finished] = {
    "length": "length",
    "eos_token": "stop",
    "stop_sequence": "stop",
}
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
        max_new_tokens: at least 1, or 0 to score the prompt only; with the prompt at most the model's context.
        sampling: how tokens are chosen.
        stops: strings that end the text, which they are not part of.
        ignore_eos: whether the text continues behind the token that ends it.
        stop_token_ids: other tokens that end the text; like that one, they have no text.

    `sampling` says how many tokens are written before any of these may end it.
    """

    model: LoadedModel
    ids: tuple[int, ...]
    max_new_tokens: int
    sampling: Sampling
    stops: tuple[str, ...] = ()
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()

    @property
    def ends(self) -> dict[int, FinishReason]:
        """Why the text ends, by the token that ends it."""
        reasons: dict[int, FinishReason] = dict.fromkeys(self.stop_token_ids, "stop_sequence")
        return reasons if self.ignore_eos else reasons | {self.model.eos_id: "eos_token"}


@dataclass(frozen=True)
class End:
    """How a generation ended.

    Attributes:
        reason: why.
        text: all of it.
    """

    reason: FinishReason
    text: str


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token.

    Attributes:
        id: its number.
        text: what it released; the texts of all tokens make up the whole, so that it is empty for
            half a character and for what may become a stop string.
        logprob: the model's own log-probability, in nats; nan unless the generation is `scored`.
        special: whether it is a special token, such as the end of the text.
        end: comes with the last token.
        top: the likeliest tokens instead of it, as many as were asked for, the best first.
    """

    id: int
    text: str
    logprob: float
    special: bool
    end: End | None
    top: Top = ()


class Generation(Request[Token]):
    """The continuation of one prompt, as it grows. Its random numbers are its own.

    Attributes:
        prompt: what it continues.
        scored: whether the log-probabilities of its tokens are wanted.
        top: how many of the likeliest tokens are wanted beside each, with their log-probabilities.
        clock: when what happened.
        slot: its place in the KV cache, given by the engine.
        read: how many of its tokens are in the KV cache.
        known: tokens that are to be read before it writes: the prompt, and what it had written when it was sent back.
        scores: of the prompt's own tokens, complete before the first new token or the end; None if not wanted.
        on_end: called with all tokens, and the scores of the prompt, at the end, if it comes to one.

    Law: the same prompt gives the same events, whatever else the engine does.
    """

    def __init__(
        self,
        prompt: Prompt,
        metrics: Metrics,
        *,
        streamed: bool = True,
        scored: bool = True,
        top: int = 0,
        prompt_scored: bool = False,
    ) -> None:
        """Begin with nothing read.

        Args:
            prompt: what to continue.
            metrics: that hear of it.
            streamed: whether its tokens are delivered one by one rather than all at the end.
            scored: see above.
            top: see above.
            prompt_scored: whether the log-probabilities of the prompt's own tokens are wanted, too.
        """
        tokens = len(prompt.ids) + prompt.max_new_tokens
        super().__init__(prompt.model.name, eager=streamed, tokens=tokens)
        self.prompt = prompt
        self.scored = scored
        self.slot = -1
        self.read = 0
        self.known = len(prompt.ids)
        self.top = top
        self.scores = PromptScores(prompt.ids, top) if prompt_scored else None
        self.on_end: Callable[[Sequence[Token], Scores | None], None] | None = None
        self._taken: list[Token] = []
        self.clock = RequestClock(metrics, self.model_name)
        self._stream = TextStream(prompt.stops, prompt.sampling.adjustments.min_tokens)
        self._ends = prompt.ends
        self._prompt_tokens = len(prompt.ids)
        self._text: list[str] = []
        self._ids = list(prompt.ids)
        self._random = Random(prompt.sampling.seed)  # noqa: S311
        self._uniforms: deque[float] = deque()  # of the tokens to come, as far as they were drawn

    @property
    def ids(self) -> Sequence[int]:
        """The prompt, and the tokens written."""
        return self._ids

    @property
    def generated(self) -> int:
        """Tokens written."""
        return len(self._ids) - len(self.prompt.ids)

    @property
    def left(self) -> int:
        """Tokens that it may still write."""
        return self.prompt.max_new_tokens - self.generated

    @property
    def scoring(self) -> PromptScores | None:
        """The scores, until they are complete: what the prompt's tokens are read for."""
        return None if self.scores is None or self.scores.complete else self.scores

    @property
    def reading(self) -> bool:
        """Whether some of what is known is still unread, or some of the prompt unscored."""
        return self.read < self.known or self.scoring is not None

    @property
    def scored_through(self) -> bool:
        """Whether all of a prompt that is scored has been, and nothing was made of it yet."""
        return self.read >= self.known and self.scoring is not None and not self.scoring.left

    def unread(self, at_most: int) -> list[int]:
        """Return the next tokens for the model: up to `at_most` of those that are known, then one by one."""
        return self._ids[self.read : self.read + at_most]

    @property
    def waits(self) -> bool:
        return self.slot < 0

    def started(self, slot: int) -> None:
        """It got a slot."""
        self.slot = slot
        self.clock.started()

    def sent_back(self) -> None:
        """It lost its slot, and has to read anew what it has read, before it goes on as if it had not."""
        self.slot = -1
        self.read = 0
        self.known = len(self._ids)
        if self.scoring is not None:
            self.scoring.restart()

    def choice(self, proposed: Sequence[int] = ()) -> Choice:
        """Return how the token behind some `proposed` ones is to be chosen, were they written.

        A token's random number belongs to its place: it is the same until that is written, whatever was proposed.
        """
        while len(self._uniforms) <= len(proposed):
            self._uniforms.append(self._random.random())
        seen = [*self._ids, *proposed] if proposed else self._ids
        return Choice(self.prompt.sampling, self._uniforms[len(proposed)], seen, self._prompt_tokens)

    def take(self, token_id: int, logprob: float, top: Top = ()) -> bool:
        """Add a token; return whether it was the last one."""
        if self._uniforms:
            self._uniforms.popleft()
        self._ids.append(token_id)
        self.clock.token()
        words = self.prompt.model.vocabulary
        reason, text = self._ends.get(token_id), ""
        if reason is None:
            text = self._stream.push(words.bytes[token_id])
            reason = self._finish_reason()
        if reason is not None:
            text += self._stream.finish()
        self._text.append(text)
        end = None if reason is None else self._end(reason)
        logprob = logprob if self.scored else nan  # that of a neighbour may have been computed with it
        token = Token(token_id, text, logprob, token_id in words.special, end, top[: self.top])
        self.mailbox.put(token)
        if self.on_end is not None:
            self._taken.append(token)
        if end is not None:
            self._ended()
        return end is not None

    def end_unwritten(self) -> None:
        """End with the prompt, which is scored."""
        self.clock.finished("length", len(self.prompt.ids))
        self._ended()

    def _ended(self) -> None:
        self.mailbox.put(None)
        if self.on_end is not None:
            self.on_end(self._taken, self.scores.found if self.scores else None)

    def replay(self, tokens: Sequence[Token], scores: Scores | None) -> None:
        """Take what the same prompt once gave, instead of going to the engine; for the event loop."""
        if self.scores is not None and scores is not None:
            self.scores.found = scores
        for token in tokens:
            self._ids.append(token.id)
            self.mailbox.put(token)
        end = tokens[-1].end if tokens else None
        self.clock.replayed("length" if end is None else FINISHED_REASON[end.reason])
        self.mailbox.put(None)

    def abort(self) -> None:
        self.clock.aborted()
        super().abort()

    def _end(self, reason: FinishReason) -> End:
        self.clock.finished(FINISHED_REASON[reason], len(self.prompt.ids))
        return End(reason, "".join(self._text))

    def _finish_reason(self) -> FinishReason | None:
        if self._stream.stopped:
            return "stop_sequence"
        return "length" if self.generated == self.prompt.max_new_tokens else None
