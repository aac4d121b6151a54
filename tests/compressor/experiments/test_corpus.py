"""Books: which are set aside never depends on anything, and nothing of them is trained on."""

import hashlib
import lzma
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from compressor import huggingface
from compressor.experiments.corpus import BOOK_END, SELECTION_BOOKS, Corpus, read_corpus, read_packed_text

TOKENIZER = Tokenizer.from_file(str(huggingface.EMBEDDED_FOLDER / "tokenizer.json"))


def _write(path: Path, books: list[str]) -> Path:
    with lzma.open(path, "wt") as file:
        file.write(BOOK_END.join(books))
    return path


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write(tmp_path_factory.mktemp("books") / "train.txt.xz", [f"{k} " * 600 for k in range(100, 120)] + ["x"])


def _numbers(ids: torch.Tensor) -> set[str]:
    return set(TOKENIZER.decode(ids.tolist()).replace(BOOK_END, " ").split())


def test_books_are_told_apart_and_title_pages_left_out(books: Path) -> None:
    corpus = read_corpus(books, TOKENIZER, 0)
    training, selection = _numbers(corpus.training), _numbers(corpus.selection)
    assert len(selection) == SELECTION_BOOKS
    assert training | selection == {f"{k}" for k in range(100, 120)}
    assert not training & selection


def test_the_same_file_always_gives_the_same_rows(books: Path) -> None:
    first, second = read_corpus(books, TOKENIZER, 0), read_corpus(books, TOKENIZER, 0)
    assert torch.equal(first.calibration(6, 32), second.calibration(6, 32))
    assert first.calibration(6, 32).shape == (6, 32)
    assert torch.equal(first.held_back(3, 16), second.held_back(3, 16))
    assert first.held_back(3, 16).shape == (48,)


def test_rows_are_drawn_without_replacement() -> None:
    corpus = Corpus(training=torch.arange(1000), selection=torch.arange(10))
    rows = corpus.calibration(9, 100)
    assert len(rows.unique()) == 900
    assert torch.equal(rows % 100, torch.arange(100).expand(9, 100))


def test_a_packed_text_is_the_text(tmp_path: Path) -> None:
    path = _write(tmp_path / "valid.txt.xz", ["It rained, für immer."])
    text = read_packed_text(path, TOKENIZER)
    assert TOKENIZER.decode(text.ids.tolist()) == "It rained, für immer."
    data = "It rained, für immer.".encode()
    assert (text.name, text.num_bytes, text.sha256) == ("valid.txt.xz", len(data), hashlib.sha256(data).hexdigest())


def test_bad_books_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"books: cannot read .*absent"):
        read_corpus(tmp_path / "absent", TOKENIZER, 0)
    (tmp_path / "plain.xz").write_text("not packed")
    with pytest.raises(ValueError, match=r"books: .*plain.xz is not an xz file"):
        read_corpus(tmp_path / "plain.xz", TOKENIZER, 0)
    with pytest.raises(ValueError, match="books: must have at least 100 tokens, one row, not 10"):
        Corpus(training=torch.arange(10), selection=torch.arange(10)).calibration(9, 100)
    with pytest.raises(ValueError, match="more than 10 books, not 3"):
        read_corpus(_write(tmp_path / "few", ["word " * 400] * 3), TOKENIZER, 0)
