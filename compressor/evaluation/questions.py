"""What a model gets right, not only how surprised it is: questions made of any text.

Both kinds are scored on text alone, so that they compare a compressed model with its dense one; the absolute
figures depend on the text and compare with no other benchmark.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor

from compressor.progress import Progress, silent
from compressor.runtime.lambada import continuation_score
from compressor.runtime.model import Model

MIN_WORDS = 30  # of a passage whose last word is asked for
CONTEXT_TOKENS, ANSWER_TOKENS, ANSWERS = 48, 16, 4


class Question(NamedTuple):
    """A beginning [T] and the answers to choose from; the first is the true one."""

    context: Tensor
    answers: list[Tensor]


@dataclass(frozen=True)
class Accuracy:
    """Share of questions answered rightly, and how many there were.

    Attributes:
        last_word: the last word of a passage, every token of it the likeliest (as LAMBADA counts, Paperno et al.,
            arXiv 1606.06031, section 5).
        choice: the true continuation has the highest log-probability among four.
        passages, choices: how many questions.
    """

    last_word: float
    choice: float
    passages: int
    choices: int


def passages(text: str, limit: int = 200) -> list[tuple[str, str]]:
    """Return paragraphs of at least MIN_WORDS words as (all but the last word, the last word with its space)."""
    found = []
    for paragraph in text.replace("\r\n", "\n").split("\n\n"):
        words = " ".join(paragraph.split()).rstrip(" .,;:!?\"'-")
        beginning, _, last = words.rpartition(" ")
        if len(words.split()) >= MIN_WORDS and last.isalpha():
            found.append((beginning, " " + last))
    return found[:limit]


def last_words(text: str, tokenizer: Tokenizer, limit: int = 200) -> list[Question]:
    """Return passages of `text` as questions whose answer is the last word."""
    found = []
    for passage in passages(text, limit):
        context, answer = (torch.tensor(part.ids) for part in tokenizer.encode_batch(list(passage)))
        found.append(Question(context, [answer]))
    return found


def continuations(text: str, tokenizer: Tokenizer, limit: int = 200, seed: int = 0) -> list[Question]:
    """Return stretches of CONTEXT_TOKENS tokens with what follows and three continuations from elsewhere."""
    ids = torch.tensor(tokenizer.encode(text, add_special_tokens=False).ids)
    stretches = ids[: len(ids) // (size := CONTEXT_TOKENS + ANSWER_TOKENS) * size].view(-1, size)
    if len(stretches) < ANSWERS:
        return []
    random = torch.Generator().manual_seed(seed)
    found = []
    for i, stretch in enumerate(stretches[:limit]):
        others = (torch.randperm(len(stretches) - 1, generator=random)[: ANSWERS - 1] + i + 1) % len(stretches)
        answers = [stretch[CONTEXT_TOKENS:], *stretches[others, CONTEXT_TOKENS:]]
        found.append(Question(stretch[:CONTEXT_TOKENS], answers))
    return found


def accuracy(model: Model, text: str, tokenizer: Tokenizer, progress: Progress = silent) -> Accuracy:
    """Return how often a model answers questions about `text` rightly.

    Raises:
        ValueError: if the text is too short for a question of either kind.
    """
    passages, choices = last_words(text, tokenizer), continuations(text, tokenizer)
    check_passages(len(passages))
    if not choices:
        need, tokens = ANSWERS * (CONTEXT_TOKENS + ANSWER_TOKENS), len(tokenizer.encode(text).ids)
        raise ValueError(f"text: must have at least {need} tokens, not {tokens}")
    known = _scores(model, passages, progress)
    chosen = _scores(model, choices, progress)
    return Accuracy(
        last_word=sum(all_likeliest for ((_, all_likeliest),) in known) / len(known),
        choice=sum(max(range(ANSWERS), key=lambda i: scores[i][0]) == 0 for scores in chosen) / len(chosen),
        passages=len(passages),
        choices=len(choices),
    )


def check_passages(found: int) -> None:
    """Refuse a text without any passage; raises ValueError."""
    if not found:
        raise ValueError(f"text: must have a paragraph of at least {MIN_WORDS} words that ends with one, and has none")


def _scores(model: Model, questions: list[Question], progress: Progress) -> list[list[tuple[float, bool]]]:
    """Return for every answer its log-probability and whether each of its tokens is the likeliest."""
    room = model.config.n_positions + 1
    asked = progress(questions, label="Asking questions", total=len(questions))
    return [
        [continuation_score(model, torch.cat([q.context, answer])[-room:].numpy(), len(answer)) for answer in q.answers]
        for q in asked
    ]
