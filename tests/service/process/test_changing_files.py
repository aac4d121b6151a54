"""What happens to an artefact's folder reaches neither a running service nor one that is loading it."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest

from compressor.runtime.evaluate import hidden_states
from compressor.runtime.load import load
from tests.conftest import tiny_model, write_artifact
from tests.service.conftest import int8_model, wait_until
from tests.service.test_process import address, process


def _truncate(folder: Path) -> None:
    for path in folder.iterdir():
        os.truncate(path, 0)


def _overwrite(folder: Path) -> None:
    """Copy another artefact of the same sizes over this one, into the very files."""
    other = write_artifact(folder.parent / "other" / folder.name, int8_model(seed=9))
    for path in other.iterdir():
        with (folder / path.name).open("r+b") as file:
            file.write(path.read_bytes())


def _zero(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("r+b") as file:
            file.write(bytes(path.stat().st_size))


def _replace(folder: Path) -> None:
    write_artifact(folder, tiny_model(seed=9), force=True)


CHANGES: list[Callable[[Path], None]] = [_truncate, _overwrite, _zero, _replace, shutil.rmtree]


def ask(url: str) -> list[object]:
    generated = httpx.post(
        f"{url}/generate",
        json={"inputs": "The old man", "parameters": {"max_new_tokens": 20, "details": True}},
        timeout=60,
    )
    vectors = httpx.post(f"{url}/embeddings", json={"inputs": list(range(0, 16384, 97))}, timeout=60)
    info = httpx.get(f"{url}/info")
    return [(answer.status_code, answer.json()) for answer in (generated, vectors, info)]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("seed", [1, 2], ids=["fp32", "int8"])
def test_a_running_service_goes_on_with_the_same_bits(
    tmp_path: Path, change: Callable[[Path], None], seed: int
) -> None:
    folder = write_artifact(tmp_path / "model", tiny_model(seed=seed) if seed == 1 else int8_model(seed))
    with process(folder, "--port", 0, TTGPT_THREADS="1") as child:
        url = address(child)
        wait_until(lambda: httpx.get(f"{url}/readyz").status_code == 200)
        before = ask(url)
        change(folder)
        assert ask(url) == before
        assert child.poll() is None


def test_no_file_of_the_artefact_stays_open_or_mapped(tmp_path: Path) -> None:
    folder = write_artifact(tmp_path / "model", int8_model(seed=2))
    with process(folder, "--port", 0, TTGPT_THREADS="1") as child:
        url = address(child)
        wait_until(lambda: httpx.get(f"{url}/readyz").status_code == 200)
        held = Path(f"/proc/{child.pid}/maps").read_text()
        held += "".join(os.readlink(path) for path in Path(f"/proc/{child.pid}/fd").iterdir() if path.is_symlink())
    assert str(folder) not in held


def test_what_was_verified_is_what_is_used(tmp_path: Path) -> None:
    folder = write_artifact(tmp_path / "model", int8_model(seed=2))
    ids = np.arange(10)
    expected = hidden_states(load(folder)[1], ids)
    loaded, model = load(folder)
    _zero(folder)
    assert np.array_equal(hidden_states(model, ids), expected)
    assert loaded.tokenizer_json
