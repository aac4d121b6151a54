"""What is written is there whole or not at all, says what went wrong, and can be read by others."""

import os
import resource
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from compressor.storage import durable


@contextmanager
def files_of_at_most(size_bytes: int) -> Iterator[None]:
    """Refuse longer files to this process, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def _write_tensors(path: Path) -> None:
    with durable.replacing(path) as new:
        save_file({"a": torch.zeros(10_000)}, new)


def _write_folder(path: Path) -> None:
    with durable.replacing(path) as new:
        new.mkdir()
        save_file({"a": torch.zeros(10_000)}, new / "a.safetensors")


WRITERS: dict[str, Callable[[Path], None]] = {
    "tensors": _write_tensors,
    "folder": _write_folder,
    "bytes": lambda path: durable.write(path, bytes(40_000)),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_names_the_place_and_leaves_what_was_there(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "place"
    WRITERS[kind](place)
    before = {path: path.stat().st_ino for path in tmp_path.rglob("*")}
    with files_of_at_most(20_000), pytest.raises(OSError, match="File too large") as error:
        WRITERS[kind](place)
    assert error.value.filename == str(place)
    assert {path: path.stat().st_ino for path in tmp_path.rglob("*")} == before
    with files_of_at_most(20_000), pytest.raises(OSError, match="File too large"):
        WRITERS[kind](tmp_path / "new")
    assert os.listdir(tmp_path) == ["place"]


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_files_follow_the_umask(kind: str, mask: int, mode: int, tmp_path: Path) -> None:
    with umask(mask):
        WRITERS[kind](tmp_path / "place")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {mode}


@pytest.mark.parametrize("kind", WRITERS)
def test_what_a_killed_writer_left_is_cleared_by_the_next_one(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "a[1]"  # a pattern to whom it may concern
    child = os.fork()
    if child == 0:
        with durable.replacing(place) as new:
            new.mkdir()
            (new / "half").touch()
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert os.listdir(tmp_path) == [f".a[1].unfinished-{child}"]
    WRITERS[kind](place)
    assert os.listdir(tmp_path) == ["a[1]"]


def test_an_error_of_the_caller_comes_through(tmp_path: Path) -> None:
    with pytest.raises(KeyError), durable.replacing(tmp_path / "place") as new:
        new.write_text(dict[str, str]()["missing"])
    assert os.listdir(tmp_path) == []
    with pytest.raises(FileNotFoundError) as error, durable.replacing(tmp_path / "place"):
        Path("nowhere").read_bytes()
    assert error.value.filename == "nowhere"


def test_a_link_is_replaced_and_what_it_led_to_stays(tmp_path: Path) -> None:
    _write_folder(tmp_path / "v1")
    (tmp_path / "current").symlink_to("v1")
    durable.clear_leftovers(tmp_path / "current")
    _write_folder(tmp_path / "current")
    assert sorted(os.listdir(tmp_path)) == ["current", "v1"]
    assert not (tmp_path / "current").is_symlink()
