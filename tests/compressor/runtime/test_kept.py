"""What is kept in the user's cache folder: found again, bounded, and never needed."""

import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from compressor.runtime import kept


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ttgpt"


class Maker:
    """Counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self) -> NDArray[np.int64]:
        self.asked += 1
        return np.arange(1000)


def test_an_array_is_made_once_and_again_where_it_is_damaged_or_about_something_else(folder: Path) -> None:
    make = Maker()
    for about, asked in ((["a", 1], 1), (["a", 1], 1), (["a", 2], 2)):
        assert (kept.found_or_made(about, make) == np.arange(1000)).all()
        assert make.asked == asked
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    assert (kept.found_or_made(["a", 1], make) == np.arange(1000)).all()
    assert make.asked == 3


def test_a_folder_that_cannot_be_written_is_no_error(folder: Path) -> None:
    folder.parent.touch()
    make = Maker()
    assert [len(kept.found_or_made(["a"], make)) for _ in range(2)] == [1000, 1000]
    assert make.asked == 2


def test_the_oldest_go_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "MOST_BYTES", 250)
    folder.mkdir(parents=True)
    for age, name in enumerate(["measured-c.safetensors", "b.npy", "measured-a.safetensors"]):
        (folder / name).write_bytes(bytes(100))
        os.utime(folder / name, (1000 - age, 1000 - age))
    kept.trim()
    assert sorted(path.name for path in folder.iterdir()) == ["b.npy", "measured-c.safetensors"]
