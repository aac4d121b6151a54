"""How likely the model finds a prompt: the log-probability of each of its tokens, given those before it."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.engine.sampling import likelihoods

Hidden = NDArray[np.float32]
Head = Callable[[Hidden], NDArray[np.float32]]


class Scores(NamedTuple):
    """What the model thinks of the n tokens behind a prompt's first one, in nats.

    Attributes:
        logprobs: of the tokens themselves, fp32 [n].
        top_ids: the k likeliest tokens in the place of each, the best first, int32 [n, k].
        top_logprobs: of these, fp32 [n, k].
    """

    logprobs: NDArray[np.float32]
    top_ids: NDArray[np.int32]
    top_logprobs: NDArray[np.float32]


class PromptScores:
    """Finds the log-probabilities of a prompt's tokens but the first, a tile of them at a time.

    Attributes:
        found: what is found so far, in place. Small pieces, kept between logits that come and go, would leave holes as
            large as those.
        hidden: hidden states [n, D] of tokens that were read, from the first on whose successor is not scored yet;
            at the end that of the last token; None before anything was read and after it was taken.
        complete: whether it was taken, so that nothing is left to do.
    """

    def __init__(self, ids: Sequence[int], top: int) -> None:
        """Begin with nothing found.

        Args:
            ids: the prompt.
            top: how many of the likeliest tokens are wanted beside each, k.
        """
        n = len(ids) - 1
        self.found = Scores(np.zeros(n, np.float32), np.zeros((n, top), np.int32), np.zeros((n, top), np.float32))
        self.hidden: Hidden | None = None
        self.complete = False
        self._ids = ids
        self._scored = 0

    def restart(self) -> None:
        """The prompt is read from the beginning again."""
        self.hidden, self._scored = None, 0

    @property
    def left(self) -> int:
        """Tokens that are not scored yet."""
        return len(self._ids) - 1 - self._scored

    def add(self, hidden: Hidden) -> None:
        """Take the hidden states [n, D] of the tokens of the prompt that were read next."""
        self.hidden = hidden if self.hidden is None else np.concatenate([self.hidden, hidden])

    def ready(self, tile: int) -> bool:
        """Return whether a tile, or the last tokens of the prompt, can be scored before more of it is read."""
        return self.hidden is not None and 0 < min(tile, self.left) <= len(self.hidden)

    def score(self, tile: int, head: Head) -> None:
        """Score the next `tile` tokens, which are `ready`; `head` gives the logits [n, V] of hidden states [n, D]."""
        assert self.hidden is not None  # noqa: S101 - they are ready
        count = min(tile, self.left)
        end = self._scored + count
        targets = self._ids[self._scored + 1 : end + 1]
        top = self.found.top_ids.shape[-1]
        logits = head(self.hidden[:count])
        for whole, part in zip(self.found, likelihoods(logits, targets, top), strict=True):
            whole[self._scored : end] = part
        self._scored = end
        self.hidden = self.hidden[count:]

    def last(self) -> Hidden:
        """Return the hidden state [1, D] after the prompt, when all is read and scored, and forget it."""
        assert self.hidden is not None  # noqa: S101 - all is read
        hidden, self.hidden, self.complete = self.hidden, None, True
        return hidden
