"""Which book a passage is from, told by a linear probe of a model's hidden states.

Probing as of Alain and Bengio (arXiv 1610.01644): what a linear map finds in the states was kept in them. The
texts do not name their authors, so that books are told apart, by their names and subjects as well as their style.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from compressor.experiments.corpus import BOOK_END, SHORTEST_BOOK
from compressor.pages import table
from compressor.progress import Progress, silent
from compressor.runtime.evaluate import read_utf8
from compressor.runtime.kv import Cache
from compressor.runtime.load import load
from compressor.runtime.model import Ids, Model

WORDS = 48  # of a passage
LEARNT, ASKED = 120, 80  # passages of each book, at most
LEARNT_SHARE, ASKED_SHARE = 0.7, 0.2  # of a book: its beginning and its end; what lies between is not used
BATCH = 16  # passages that are read at once
RIDGE = 0.1  # penalty per passage, of features with unit variance

Features = NDArray[np.float64]
Labels = NDArray[np.int64]


class Passages(NamedTuple):
    """Passages and the number of the book [n] that each is from."""

    texts: list[str]
    books: Labels


def read_books(path: Path) -> list[str]:
    """Return the books in a text file, plain or .xz; raises ValueError if there are fewer than two."""
    books = [book for book in read_utf8(path, "books").split(BOOK_END) if len(book) > SHORTEST_BOOK]
    if len(books) < 2:
        raise ValueError(f"books: {path} must have at least 2 books, not {len(books)}")
    return books


def divided(books: Sequence[str]) -> tuple[Passages, Passages]:
    """Return the passages that are learnt from, of every book's beginning, and those asked about, of its end."""
    learnt, asked = Passages([], np.empty(0, np.int64)), Passages([], np.empty(0, np.int64))
    for number, book in enumerate(books):
        words = book.split()
        found = [" ".join(words[i : i + WORDS]) for i in range(0, len(words) - WORDS + 1, WORDS)]
        first, last = math.floor(LEARNT_SHARE * len(found)), math.ceil((1 - ASKED_SHARE) * len(found))
        learnt = _with(learnt, found[:first], LEARNT, number)
        asked = _with(asked, found[last:], ASKED, number)
    return learnt, asked


def _with(passages: Passages, found: list[str], most: int, number: int) -> Passages:
    """Return `passages` and at most `most` of those that were found in a book, evenly spaced."""
    chosen = [found[i * len(found) // most] for i in range(most)] if len(found) > most else found
    return Passages([*passages.texts, *chosen], np.append(passages.books, [number] * len(chosen)).astype(np.int64))


def mean_states(model: Model, tokens: Sequence[Ids], progress: Progress = silent) -> Features:
    """Return the mean of the hidden states of each of several texts, [n, D]."""
    batches = [tokens[i : i + BATCH] for i in range(0, len(tokens), BATCH)]
    return np.concatenate([_means(model, batch) for batch in progress(batches, label="Reading", total=len(batches))])


def _means(model: Model, batch: Sequence[Ids]) -> Features:
    counts = np.array([len(ids) for ids in batch])
    cache = Cache(model.config, len(batch), int(counts.max()))
    hidden = model.read(np.concatenate(batch), cache, np.arange(len(batch)), counts, hidden=True).hidden
    assert hidden is not None  # noqa: S101 - they are wanted
    sums: Features = np.add.reduceat(hidden.astype(np.float64), counts.cumsum() - counts)  # [B, D]
    means: Features = sums / counts[:, None]
    return means


def mean_vectors(model: Model, tokens: Sequence[Ids]) -> Features:
    """Return the mean of the vectors of the tokens of each of several texts, [n, D], which no block has seen."""
    return np.stack([model.embed(ids).astype(np.float64).mean(0) for ids in tokens])


def right(learnt: Features, books: Labels, asked: Features, answers: Labels) -> float:
    """Return the share of `asked` that a ridge regression on `learnt`, one output per book, gives the right book."""
    centre, spread = learnt.mean(0), learnt.std(0)
    spread[spread == 0] = 1.0
    x, y = (learnt - centre) / spread, np.eye(books.max() + 1)[books]  # [n, D], [n, books]
    weights = np.linalg.solve(x.T @ x + RIDGE * len(x) * np.eye(x.shape[1]), x.T @ (y - y.mean(0)))
    found = (asked - centre) / spread @ weights + y.mean(0)
    return float((found.argmax(1) == answers).mean())


def measured(path: Path, folders: Sequence[Path], progress: Progress = silent) -> dict[str, Any]:
    """Return how often the probe of each artefact is right about the books in a file.

    Raises:
        ValueError: if the file has fewer than two books.
        ArtifactError: if an artefact cannot be read.
    """
    books = read_books(path)
    learnt, asked = divided(books)
    models = [_row(folder, learnt, asked, progress) for folder in folders]
    return {"books": len(books), "learnt": len(learnt.texts), "asked": len(asked.texts), "models": models}


def _row(folder: Path, learnt: Passages, asked: Passages, progress: Progress) -> dict[str, Any]:
    artifact, model = load(folder)
    tokens = [_tokens(part, artifact.tokenizer, model.config.n_positions) for part in (learnt, asked)]
    states, vectors = (mean_states(model, t, progress) for t in tokens), (mean_vectors(model, t) for t in tokens)
    found = [right(a, learnt.books, b, asked.books) for a, b in (states, vectors)]
    return {
        "name": folder.resolve().name,
        "bytes": artifact.manifest.weight_bytes,
        "states": round(found[0], 4),
        "vectors": round(found[1], 4),
    }


def _tokens(passages: Passages, tokenizer: Tokenizer, context: int) -> list[Ids]:
    encoded = tokenizer.encode_batch_fast(passages.texts, add_special_tokens=False)
    return [np.array(found.ids[:context], np.int64) for found in encoded]


def probe_table(results: dict[str, Any]) -> str:
    """Return how often each probe was right, in Markdown, with the 95 % interval of a share of so many passages."""
    head = ["model", "disk, MB", "hidden states", "±", "token vectors alone"]
    rows = []
    for model in results["models"]:
        spread = 1.96 * math.sqrt(model["states"] * (1 - model["states"]) / results["asked"])
        shares = [f"{100 * share:.1f} %" for share in (model["states"], spread, model["vectors"])]
        rows.append([model["name"], f"{model['bytes'] / 1e6:.2f}", *shares])
    chance = f"{100 / results['books']:.0f} %"
    said = (
        f"{results['asked']} passages of {results['books']} books, so that guessing is right in {chance}; learnt from "
        f"{results['learnt']} others.\n± is the 95 % interval of a share of so many passages."
    )
    return f"{table(head, rows)}\n\n{said}"
