"""What all steps of one build share; everything is made when it is first asked for."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compressor.artifact.tokenizer import read_tokenizer
from compressor.huggingface import Checkpoint
from compressor.methods.base import Statistics, Target, is_target
from compressor.process.memory import give_back
from compressor.progress import Echo, Progress, ignore, silent
from compressor.recipes.calibrate import DEFAULT_TOKENS, collect, read_ids, sample_text
from compressor.recipes.checkpoint import digest
from compressor.recipes.executor import IN_PROCESS, Executor
from compressor.recipes.journal import Journal
from compressor.recipes.search import Search, identity
from compressor.runtime import kept

HEALING_TOKENS = 131072  # sampled from the model to heal on, where no text is given
MAX_HEALING_TOKENS = 8_000_000  # read from the user's texts, at most


@dataclass(frozen=True, kw_only=True)
class Context:
    """The dense model, the texts that say what matters, and where the work runs.

    Attributes:
        checkpoint: the dense model.
        texts: for statistics and healing; by default the model writes its own text.
        given: calibration text [rows, T] instead.
        executor: where a budget's measurements run.
        progress: progress callback of every long step.
        echo: what a user should know goes here, a line each.
    """

    checkpoint: Checkpoint
    texts: Sequence[Path] = ()
    given: Tensor | None = None
    executor: Executor = IN_PROCESS
    progress: Progress = silent
    echo: Echo = ignore
    _searches: dict[Target, Search] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def calibration(self) -> Tensor:
        """Calibration text [rows, T]."""
        if self.given is not None:
            return self.given
        if self.texts:
            return self.read(DEFAULT_TOKENS)
        return self._sampled(DEFAULT_TOKENS, seed=0)

    @cached_property
    def statistics(self) -> dict[str, Statistics]:
        """Statistics of every matrix."""
        return collect(self.checkpoint.dense, self.calibration, self.progress)

    def read(self, tokens: int) -> Tensor:
        """Return about so many tokens of the user's texts [rows, T]; raises ValueError if there are too few."""
        tokenizer = read_tokenizer(self.checkpoint.tokenizer_json)
        return read_ids(self.texts, tokenizer, context=self.checkpoint.model.config.n_positions, tokens=tokens)

    def healing_text(self, tokens: int, least: int) -> Tensor:
        """Return about so many tokens to heal on, or as many as there may be, and at least so many [rows, T]."""
        if self.texts:
            return self.read(min(tokens, MAX_HEALING_TOKENS) + least)
        wanted = min(tokens, HEALING_TOKENS) + least
        return self._sampled(wanted, seed=1)

    def _sampled(self, tokens: int, seed: int) -> Tensor:
        """Return text that the model writes, or has written before [rows, T]."""
        model = self.checkpoint.model
        about = ["sampled", digest(model, asdict(model.config)), tokens, seed]

        def sample() -> NDArray[np.int64]:
            text = sample_text(model.decoder(), tokens, seed, self.progress).numpy()
            give_back()  # what keys and values have used
            return text

        return torch.from_numpy(kept.found_or_made(about, sample))

    def search(self, target: Target) -> Search:
        """Return the search for forms of the matrices of a target, which remembers what it has estimated."""
        if target not in self._searches:
            dense = self.checkpoint.dense
            self._searches[target] = Search(
                dense=dense,
                ids=self.calibration,
                only=partial(is_target, target=target),
                executor=self.executor,
                progress=self.progress,
                echo=self.echo,
                journal=Journal(kept.folder(), identity(dense, self.calibration), self.echo),
            )
        return self._searches[target]
