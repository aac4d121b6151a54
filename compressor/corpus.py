"""Books to compress with: some to calibrate and heal on, some set aside for selection, and a text for figures only."""

import hashlib
import lzma
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from compressor.evaluate import Text

BOOK_END = "<|endoftext|>"
SHORTEST_BOOK = 1000  # characters; less is a title page
SELECTION_BOOKS = 10
TRAINING_BOOKS = 65
SEED = 0  # of which books are set aside, and of the rows that are calibrated on


@dataclass(frozen=True)
class Corpus:
    """Tokens of books that were told apart once and for all.

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
    """Return the corpus in a .xz file of books that end with <|endoftext|>, each ended by the token `end_id`.

    Raises:
        ValueError: if the file cannot be read or has too few books.
    """
    books = [book for book in _text(path).split(BOOK_END) if len(book) > SHORTEST_BOOK]
    if len(books) <= SELECTION_BOOKS:
        raise ValueError(f"books: {path} must have more than {SELECTION_BOOKS} books, not {len(books)}")
    random.Random(SEED).shuffle(books)  # noqa: S311  # not a secret
    encoded = tokenizer.encode_batch_fast(books[: SELECTION_BOOKS + TRAINING_BOOKS], add_special_tokens=False)
    ids = [torch.tensor([*book.ids, end_id]) for book in encoded]
    return Corpus(training=torch.cat(ids[SELECTION_BOOKS:]), selection=torch.cat(ids[:SELECTION_BOOKS]))


def read_packed_text(path: Path, tokenizer: Tokenizer) -> Text:
    """Return the text in an .xz file, to be predicted."""
    data = _text(path).encode()
    ids = tokenizer.encode_batch_fast([data.decode()], add_special_tokens=False)[0].ids
    return Text(path.name, hashlib.sha256(data).hexdigest(), len(data), torch.tensor(ids))


def _text(path: Path) -> str:
    try:
        with lzma.open(path, "rt", encoding="utf-8") as file:
            return file.read()
    except (OSError, lzma.LZMAError, UnicodeDecodeError) as error:
        raise ValueError(f"books: cannot read {path}: {error}") from error


def _drawn(ids: Tensor, rows: int, context: int) -> Tensor:
    whole = ids[: len(ids) // context * context].view(-1, context)
    chosen = torch.randperm(len(whole), generator=torch.Generator().manual_seed(SEED))[:rows]
    return whole[chosen]
