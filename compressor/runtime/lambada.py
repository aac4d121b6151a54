"""LAMBADA (Paperno et al., arXiv 1606.06031) as OpenAI published it: a passage a line, whose last word is asked for.

Counted as lm-eval's lambada_openai does: a passage is divided at its last blank and tokenised as a whole.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from compressor.progress import Progress, silent
from compressor.runtime.evaluate import bounded_exp, hidden_states, read_utf8, verdicts
from compressor.runtime.model import Ids, Model


class Passage(NamedTuple):
    """Tokens of a passage [T], of which the last `answer` are its last word."""

    ids: Ids
    answer: int


@dataclass(frozen=True)
class LastWords:
    """How well a model knows the last words of passages.

    Attributes:
        passages: how many.
        last_word_accuracy: share of them, every token of whose last word is the likeliest.
        last_word_perplexity: exp of the mean negative log-likelihood per last word.
    """

    passages: int
    last_word_accuracy: float
    last_word_perplexity: float


def read_passages(path: Path, tokenizer: Tokenizer, context: int) -> list[Passage]:
    """Return the passages in a file of JSON lines, each {"text": "..."}; plain or .xz.

    Args:
        path: of the file.
        tokenizer: of the model.
        context: that the model reads, in tokens; a passage keeps as much of its end.

    Raises:
        ValueError: if the file cannot be read or has no passage, or, naming the line, one is not as it should be.
    """
    lines = read_utf8(path).removesuffix("\n").split("\n")
    texts = [_text_in(line, f"text: {path}, line {number}") for number, line in enumerate(lines, 1)]
    return [_divided(text, tokenizer, context, f"text: {path}, line {i}") for i, text in enumerate(texts, 1)]


def _text_in(line: str, where: str) -> str:
    try:
        text = json.loads(line)["text"]
    except (ValueError, TypeError, KeyError, RecursionError):
        text = None
    if not isinstance(text, str):
        raise ValueError(f'{where} must be JSON as {{"text": "..."}}, not {line[:40]!r}')
    return text


def _divided(text: str, tokenizer: Tokenizer, context: int, where: str) -> Passage:
    beginning, _, word = text.rpartition(" ")
    if not beginning.strip() or not word.strip():
        raise ValueError(f"{where} must have words and a last one behind a blank, not {text[-40:]!r}")
    whole, known = (tokenizer.encode(part, add_special_tokens=False).ids for part in (text, beginning.rstrip()))
    answer = len(whole) - len(known)
    if not 0 < answer <= context or not known:
        raise ValueError(f"{where} must end with a word of 1 to {context} tokens, not {answer}")
    return Passage(np.array(whole[-context - 1 :], np.int64), answer)


def measure(model: Model, passages: Sequence[Passage], progress: Progress = silent) -> LastWords:
    """Return how well a model knows the last words of passages.

    Raises:
        ValueError: if logits are not finite.
    """
    asked = progress(passages, label="Asking for last words", total=len(passages))
    found = [continuation_score(model, ids, answer) for ids, answer in asked]
    loss = -sum(score for score, _ in found) / len(found)
    if not math.isfinite(loss):
        raise ValueError("text: the loss on the last words is not finite")
    return LastWords(len(found), sum(likeliest for _, likeliest in found) / len(found), bounded_exp(loss))


def continuation_score(model: Model, ids: Ids, answer: int) -> tuple[float, bool]:
    """Return the log-probability of the last `answer` tokens of a text [T], and whether each is the likeliest."""
    target = ids[-answer:]
    found = verdicts(model.logits(hidden_states(model, ids[:-1])[-answer:]), target, None, model.threads)  # [answer, 5]
    return float(found[:, 0].sum()), bool((found[:, 3] == target).all())
