"""How likely the model finds a prompt: the log-probability of each of its tokens, given those before it."""

import torch

from service.generation import Top
from service.jobs import Job
from service.models import LoadedModel
from service.sampling import best_tokens, log_probabilities

Score = tuple[float, Top]


class Scoring(Job[list[Score]]):
    """Scores the tokens of a prompt but the first, in chunks, so that nobody waits for all of it."""

    def __init__(self, model: LoadedModel, ids: tuple[int, ...], *, top: int, chunk: int) -> None:
        """Begin with nothing read.

        Args:
            model: that scores.
            ids: the prompt.
            top: how many of the likeliest tokens are wanted beside each.
            chunk: tokens that are read in one step.
        """
        super().__init__(model.name, tokens=len(ids))
        self._gpt2 = model.gpt2
        self._ids = ids
        self._top = top
        self._chunk = chunk
        self._read = 0
        self._cache = model.gpt2.new_cache(1, len(ids))

    def step(self) -> bool:
        chunk = self._ids[self._read : self._read + self._chunk]
        targets = self._ids[self._read + 1 : self._read + 1 + len(chunk)]
        hidden = self._gpt2(torch.tensor([chunk]), self._cache)[0]  # [T, D]
        self._read += len(chunk)
        logits = self._gpt2.logits(hidden[: len(targets)]).float()  # [T, V]
        scores = zip(log_probabilities(logits, targets), best_tokens(logits, self._top), strict=True)
        self.mailbox.put(list(scores))
        if self._read < len(self._ids):
            return False
        self.mailbox.put(None)
        return True
