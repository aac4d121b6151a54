"""What is done to logits before a token is drawn: bias, penalties, and tokens that must not come yet.

The order is vLLM's: bias, repetition penalty, the penalties of what was written, bans. Only the logits of the tokens
concerned are touched.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LARGEST = 1e30  # magnitude of a penalised logit; its difference to any other is finite

Logits = NDArray[np.float32]
Ids = NDArray[np.integer]


class Kept(NamedTuple):
    """Logits as they were before they were changed."""

    ids: Ids
    values: Logits


@dataclass(frozen=True, kw_only=True)
class Adjustments:
    """How logits are changed; by default not at all.

    Attributes:
        logit_bias: ids of tokens, and what is added to their logits.
        repetition_penalty: see `penalised`; of tokens of the prompt and of what was written; 1 is none.
        frequency_penalty: is subtracted as often as a token was written.
        presence_penalty: is subtracted from tokens that were written.
        share_penalty: times the share of the text, prompt included, that a token is, is subtracted; what TGI calls
            frequency penalty.
        min_tokens: so many are written before one of `ends` may be chosen.
        ends: ids of tokens that end a text.
    """

    logit_bias: tuple[tuple[int, float], ...] = ()
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    share_penalty: float = 0.0
    min_tokens: int = 0
    ends: tuple[int, ...] = ()

    @cached_property
    def needed(self) -> bool:
        """Whether there is anything to do, at least for some tokens of a text."""
        return self != Adjustments()

    @cached_property
    def _biases(self) -> tuple[Ids, Logits]:
        ids, values = zip(*self.logit_bias, strict=True)
        return np.array(ids, np.intp), np.array(values, np.float32)

    def apply(self, logits: Logits, seen: Sequence[int], prompt_tokens: int, kept: list[Kept]) -> None:
        """Change the logits [V] of one token.

        Args:
            logits: of the model.
            seen: the prompt, and what was written.
            prompt_tokens: how many of these are the prompt.
            kept: what was there before is added to it, for `restore`.
        """

        def change(ids: Ids) -> Logits:
            kept.append(Kept(ids, logits[ids]))
            return kept[-1].values

        if self.logit_bias:
            ids, values = self._biases
            logits[ids] = change(ids) + values
        if self.repetition_penalty != 1:
            ids = np.array(seen, np.intp)
            logits[ids] = penalised(change(ids), self.repetition_penalty)
        if self.frequency_penalty or self.presence_penalty:
            ids, counts = np.unique(np.array(seen[prompt_tokens:], np.intp), return_counts=True)
            penalties = self.frequency_penalty * counts + self.presence_penalty
            logits[ids] = change(ids) - penalties.astype(np.float32)
        if self.share_penalty:
            ids, counts = np.unique(np.array(seen, np.intp), return_counts=True)
            logits[ids] = change(ids) - (self.share_penalty / len(seen) * counts).astype(np.float32)
        if len(seen) - prompt_tokens < self.min_tokens:
            ids = np.array(self.ends, np.intp)
            change(ids)
            logits[ids] = -np.inf


def restore(logits: Logits, kept: list[Kept]) -> None:
    """Undo what `apply` did to the logits [V] of a token."""
    for ids, values in reversed(kept):
        logits[ids] = values


def penalised(logits: Logits, penalty: float) -> Logits:
    """Return logits [n] of tokens that were seen: less likely (penalty > 1) or more (penalty < 1).

    Reference: CTRL, arXiv 1909.05858, section 4.1, with negative logits multiplied as Hugging Face does.
    """
    factor = np.float32(min(max(penalty, 1 / LARGEST), LARGEST))  # others are 0 or infinite in fp32
    with np.errstate(over="ignore"):  # infinities are clipped
        found: Logits = np.where(logits < 0, logits * factor, logits / factor).clip(-LARGEST, LARGEST)
    return found
