"""Books to compress with: some to calibrate and heal on, some set aside for selection, and a text for figures only."""

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from compressor.runtime.evaluate import Text, read_text, read_utf8

BOOK_END = "<|endoftext|>"
SHORTEST_BOOK = 1000  # characters; less is a title page
SELECTION_BOOKS = 10
TRAINING_BOOKS = 65
SEED = 0  # of which books are set aside, and of the rows that are calibrated on


@dataclass(frozen=True)
class Corpus:
    """Tokens of books, divided once and for all.

    Attributes:
        training: to calibrate and heal on [T].
        selection: of other books, for early stopping and choices [S].
    """

    training: Tensor
    selection: Tensor

    def calibration(self, rows: int, context: int) -> Tensor:
        """Return rows of the training text [rows, context], drawn without replacement."""
        return _drawn(self.training, rows, context)

    def held_back(self, rows: int, context: int) -> Tensor:
        """Return rows of the selection books as one text [rows * context]."""
        return _drawn(self.selection, rows, context).flatten()


def read_corpus(path: Path, tokenizer: Tokenizer, end_id: int) -> Corpus:
    """Return the corpus in a text file, plain or .xz, of books that end with <|endoftext|>; `end_id` ends each.

    Raises:
        ValueError: if the file cannot be read or has too few books.
    """
    books = [book for book in read_utf8(path, "books").split(BOOK_END) if len(book) > SHORTEST_BOOK]
    if len(books) <= SELECTION_BOOKS:
        raise ValueError(f"books: {path} must have more than {SELECTION_BOOKS} books, not {len(books)}")
    random.Random(SEED).shuffle(books)  # noqa: S311  # not a secret
    encoded = tokenizer.encode_batch_fast(books[: SELECTION_BOOKS + TRAINING_BOOKS], add_special_tokens=False)
    ids = [torch.tensor([*book.ids, end_id]) for book in encoded]
    return Corpus(training=torch.cat(ids[SELECTION_BOOKS:]), selection=torch.cat(ids[:SELECTION_BOOKS]))


def read_packed_text(path: Path, tokenizer: Tokenizer) -> Text:
    """Return the text in a file, plain or .xz, to be predicted."""
    return read_text(path, tokenizer, "books")


def _drawn(ids: Tensor, rows: int, context: int) -> Tensor:
    if len(ids) < context:
        raise ValueError(f"books: must have at least {context} tokens, one row, not {len(ids)}")
    whole = ids[: len(ids) // context * context].view(-1, context)
    chosen = torch.randperm(len(whole), generator=torch.Generator().manual_seed(SEED))[:rows]
    return whole[chosen]
