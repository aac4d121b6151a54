"""Texts in the forms in which they are published, and what is measured on each."""

import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from compressor.progress import Progress, silent
from compressor.runtime import lambada, wikitext
from compressor.runtime.evaluate import as_it_is, bounded_exp, evaluate, read_text, read_utf8
from compressor.runtime.kept import dense_states
from compressor.runtime.model import Model

LAMBADA = "lambada"
# How each text is changed before it is tokenised.
CHANGES: dict[str, Callable[[str], str]] = {
    "text": as_it_is,
    "wikitext": as_it_is,
    "wikitext-detokenised": wikitext.detokenised,
}
FORMS = (*CHANGES, LAMBADA)
SUFFIXES = {".tokens": "wikitext", ".raw": "wikitext", ".jsonl": LAMBADA}


class Dense(NamedTuple):
    """The model that another is compared with, and what tells its weights from all others."""

    model: Model
    source: str


def form_of(path: Path, given: str | None = None) -> str:
    """Return the form of a text: the given one, or that which its file's name tells.

    Raises:
        ValueError: if the given one is not known.
    """
    if given is not None and given not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}, not {given!r}")
    name = path.with_suffix("") if path.suffix == ".xz" else path
    return given or SUFFIXES.get(name.suffix, "text")


def measure(
    model: Model,
    dense: Dense | None,
    path: Path,
    tokenizer: Tokenizer,
    form: str,
    *,
    stride: int | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Return what is measured of a model on a text in one of FORMS, by name.

    Args:
        model: the model.
        dense: what it is compared with, if anything.
        path: of the text, plain or .xz.
        tokenizer: of both models.
        form: of the text.
        stride: tokens from one window to the next, see `compressor.runtime.evaluate.evaluate`.
        progress: progress callback.

    Raises:
        ValueError: if the text is not what its form says, logits are not finite, or the stride is illegal.
    """
    if form == LAMBADA:
        if stride is not None:
            raise ValueError(f"stride does not go with {LAMBADA}, whose passages are read one by one")
        return _last_words(model, dense, path, tokenizer, progress)
    text = read_text(path, tokenizer, change=CHANGES[form])
    states = None if dense is None else dense_states(*dense, text, progress, stride)
    quality = evaluate(model, dense and dense.model, text, progress, states=states, stride=stride)
    if form == "text":
        return quality.model_dump()
    words = max(wikitext.word_count(read_utf8(path)), 1)
    per_word = bounded_exp(math.log(quality.perplexity) * quality.tokens / words)
    return quality.model_dump() | {"words": words, "word_perplexity": per_word}


def _last_words(
    model: Model, dense: Dense | None, path: Path, tokenizer: Tokenizer, progress: Progress
) -> dict[str, Any]:
    passages = lambada.read_passages(path, tokenizer, model.config.n_positions)
    found = {"text": path.name, **asdict(lambada.measure(model, passages, progress))}
    if dense is not None:
        theirs = lambada.measure(dense.model, passages, progress)
        found |= {f"dense_{name}": value for name, value in asdict(theirs).items() if name != "passages"}
    return found
