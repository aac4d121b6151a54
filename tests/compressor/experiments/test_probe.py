"""The probe: what it learns from and is asked never meet, and it is a ridge regression."""

import json
import lzma
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.experiments.probe import (
    ASKED,
    LEARNT,
    RIDGE,
    WORDS,
    divided,
    mean_states,
    measured,
    probe_table,
    read_books,
    right,
)
from compressor.runtime.evaluate import hidden_states
from tests.conftest import TINY, tiny_model

BOOKS = [" ".join(f"{name}{i}" for i in range(3000)) for name in ("sea", "hill", "town")]


@given(st.lists(st.integers(0, 40_000), min_size=1, max_size=3))
def test_what_is_learnt_and_what_is_asked_have_a_gap_between_them(lengths: list[int]) -> None:
    books = [" ".join(map(str, range(length))) for length in lengths]
    learnt, asked = divided(books)
    for number, length in enumerate(lengths):
        known, wanted = (
            [[int(word) for word in text.split()] for text, book in zip(*part, strict=True) if book == number]
            for part in (learnt, asked)
        )
        for part, most in ((known, LEARNT), (wanted, ASKED)):
            assert len(part) <= most
            assert len({words[0] for words in part}) == len(part)
            assert all(len(words) == WORDS for words in part)
        assert not known or known[-1][-1] < 0.7 * length
        assert not wanted or wanted[0][0] >= 0.8 * (length // WORDS * WORDS)


def test_states_read_together_are_those_read_alone() -> None:
    model = tiny_model().decoder(threads=1)
    random = np.random.default_rng(0)
    texts = [random.integers(0, TINY.vocab_size, length) for length in random.integers(1, TINY.n_positions, 37)]
    alone = [hidden_states(model, ids).astype(np.float64).mean(0) for ids in texts]
    np.testing.assert_allclose(mean_states(model, texts), alone, rtol=1e-12)


def test_the_probe_is_a_ridge_regression() -> None:
    """As least squares with rows that pull every weight towards zero find it."""
    random = np.random.default_rng(0)
    books, answers = random.integers(0, 4, 300), random.integers(0, 4, 200)
    centres = random.normal(size=(4, 12))
    learnt, asked = (centres[labels] + 2 * random.normal(size=(len(labels), 12)) for labels in (books, answers))
    x = (learnt - learnt.mean(0)) / learnt.std(0)
    y = np.eye(4)[books]
    rows = np.vstack([np.c_[x, np.ones(300)], np.c_[np.sqrt(RIDGE * 300) * np.eye(12), np.zeros(12)]])
    weights = np.linalg.lstsq(rows, np.vstack([y, np.zeros((12, 4))]))[0]
    found = np.c_[(asked - learnt.mean(0)) / learnt.std(0), np.ones(200)] @ weights
    assert right(learnt, books, asked, answers) == (found.argmax(1) == answers).mean()
    assert right(learnt, books, asked, answers) > 0.4  # a quarter is chance


def test_books_of_other_words_are_told_apart(tiny_artifact: Path, tmp_path: Path) -> None:
    path = tmp_path / "valid.txt.xz"
    path.write_bytes(lzma.compress("<|endoftext|>".join(BOOKS).encode()))
    found = measured(path, [tiny_artifact])
    (row,) = found["models"]
    assert (found["books"], row["name"]) == (3, "tiny")
    assert found["learnt"] > found["asked"] > 10
    assert min(row["states"], row["vectors"]) > 0.9
    assert json.loads(json.dumps(found)) == found
    assert f"| tiny | {row['bytes'] / 1e6:.2f} |" in probe_table(found)
    assert found == measured(path, [tiny_artifact])


def test_one_book_is_not_enough(tmp_path: Path) -> None:
    (tmp_path / "valid.txt").write_text(BOOKS[0])
    with pytest.raises(ValueError, match="must have at least 2 books, not 1"):
        read_books(tmp_path / "valid.txt")
