"""Whatever stands in a checkpoint's files gives a model that works, or one line that names what is wrong."""

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from compressor import huggingface, stored
from compressor.errors import CheckpointError
from compressor.recipes.build import build
from compressor.recipes.context import Context
from compressor.recipes.plans import Recipe
from compressor.runtime.generate import generate
from tests.compressor.test_cli import ttgpt
from tests.conftest import TINY, tiny_model

VALUES: list[Any] = [
    None,
    [],
    {},
    "x",
    "",
    -1,
    0,
    1,
    2,
    1e9,
    10**9,
    10**400,
    math.nan,
    math.inf,
    True,
    False,
    [[]],
    [0],
]
SHAPE = replace(TINY, vocab_size=300)
SHARDS = ["a.safetensors", "b.safetensors"]


def _tokenizer() -> bytes:
    """Return the embedded tokenizer, cut to SHAPE's tokens."""
    whole = json.loads((huggingface.EMBEDDED_FOLDER / "tokenizer.json").read_bytes())
    vocab = {token: n for token, n in whole["model"]["vocab"].items() if n < SHAPE.vocab_size}
    merges = [pair for pair in whole["model"]["merges"] if "".join(pair) in vocab]
    return json.dumps(whole | {"model": whole["model"] | {"vocab": vocab, "merges": merges}}).encode()


TOKENIZER = _tokenizer()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    huggingface.export(tiny_model(SHAPE), TOKENIZER, tmp_path / "tiny")
    config = json.loads((tmp_path / "tiny" / "config.json").read_text())
    more = {"add_cross_attention": False, "quantization_config": None, "n_ctx": 64, "reorder_and_upcast_attn": False}
    (tmp_path / "tiny" / "config.json").write_text(json.dumps(config | more))
    return tmp_path / "tiny"


def _works_or_says(folder: Path, *names: str) -> bool:
    """Return whether the checkpoint is read; if not, assert that the error names one of `names`."""
    try:
        model = huggingface.load(str(folder)).model
    except CheckpointError as error:
        message = str(error)
        assert any(name in message for name in names), message
        assert "\n" not in message
        return False
    with torch.inference_mode():
        logits = model.logits(model(torch.tensor([[0, 1]])))
    assert torch.isfinite(logits).all()
    assert generate(model.decoder(), np.array([[0]]), 1, temperature=0.0).shape == (1, 2)
    return True


def test_any_value_of_any_key_works_or_is_refused_by_name(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    refused = set()
    for key in config:
        # A shape of its own is first seen to be wrong in the tensors.
        names = (key, "must have shape", "is missing", "is not a tensor") if key.startswith("n_") else (key,)
        for value in VALUES:
            path.write_text(json.dumps(config | {key: value}))
            if not _works_or_says(folder, *(names if key != "vocab_size" else (key, "wte.weight must have shape"))):
                refused.add(key)
        path.write_text(json.dumps({name: value for name, value in config.items() if name != key}))
        _works_or_says(folder, *names)
    free = {"architectures", "bos_token_id", "torch_dtype", "n_ctx", "reorder_and_upcast_attn"}
    assert refused == config.keys() - free


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "NaN", "[" * 100_000, "\ufeff{}", "1" * 5000])
@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors.index.json"])
def test_any_file_that_is_not_the_json_it_should_be_is_refused_by_name(folder: Path, file: str, content: str) -> None:
    if "index" in file:
        (folder / "model.safetensors").unlink()
    (folder / file).write_text(content)
    assert not _works_or_says(folder, f"{file}: ")


@pytest.mark.parametrize("value", [*VALUES, {"wte.weight": None}, {"wte.weight": []}, {"wte.weight": 1}])
def test_any_weight_map_is_refused_by_name(folder: Path, value: object) -> None:
    (folder / "model.safetensors").unlink()
    for index in ({"weight_map": value}, {"weights": value}):
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        assert not _works_or_says(folder, "model.safetensors.index.json: weight_map must be an object")


def _sharded(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    kept = {SHARDS[0]: names[::2], SHARDS[1]: names[1::2]}
    for file, part in kept.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in kept.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_a_missing_shard_is_called_missing(folder: Path) -> None:
    _sharded(folder)
    assert _works_or_says(folder)
    (folder / SHARDS[1]).unlink()
    with pytest.raises(CheckpointError, match=r"^b\.safetensors: is missing in .*, though model\.safetensors\.index"):
        huggingface.load(str(folder))


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 548105171\n"


@pytest.mark.parametrize(
    "file", ["config.json", "tokenizer.json", "model.safetensors", "model.safetensors.index.json", *SHARDS]
)
def test_a_pointer_of_git_lfs_is_recognised(folder: Path, file: str) -> None:
    if file != "model.safetensors":
        _sharded(folder)
    (folder / file).write_text(POINTER)
    with pytest.raises(CheckpointError, match=f"^{file}: is a Git LFS pointer, not the file itself; run git lfs pull"):
        huggingface.load(str(folder))


@pytest.mark.parametrize("file", ["vocab.json", "merges.txt"])
def test_a_pointer_among_an_older_tokenizers_files_is_recognised(folder: Path, file: str) -> None:
    model = json.loads(TOKENIZER)["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("\n".join(" ".join(pair) for pair in model["merges"]))
    assert _works_or_says(folder)
    (folder / file).write_text(POINTER)
    assert not _works_or_says(folder, f"{file}: is a Git LFS pointer")


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield where something stands in a JSON value; of long lists and objects only the beginning."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items)[:8]:
        yield (*path, key)
        yield from _places(inner, (*path, key))


def _replaced(value: Any, path: tuple[Any, ...], new: object) -> Any:
    changed = json.loads(json.dumps(value))
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = new
    return changed


def test_any_value_in_tokenizer_json_works_or_is_refused_by_name(folder: Path) -> None:
    whole = json.loads(TOKENIZER)
    (folder / "model.safetensors").unlink()  # is read after the tokenizer
    for path in _places(whole):
        for value in VALUES[:9]:
            (folder / "tokenizer.json").write_text(json.dumps(_replaced(whole, path, value)))
            _works_or_says(folder, "tokenizer.json", "model.safetensors: is missing")


def test_any_header_of_safetensors_works_or_is_refused_by_name(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]

    def write(text: bytes, size: int | None = None) -> None:
        path.write_bytes(struct.pack("<Q", len(text) if size is None else size) + text + body)

    dtypes = ["F4", "F6_E2M3", "F8_E4M3", "F8_E5M2", "F8_E8M0", "BOOL", "U8", "U16", "U32", "U64", "C64", "I64", "F64"]
    shapes = [[0, 2**62], [2**62, 4], [0, 0], [-1, 4], [10, 2], [0, 48, 50], [2**64]]
    for place in list(_places(header))[:16]:  # the metadata and two tensors
        for value in [*VALUES, *dtypes, *shapes]:
            write(json.dumps(_replaced(header, place, value)).encode())
            _works_or_says(folder, "model.safetensors: ")
    for dtype in dtypes:  # of as many bytes as it takes, so that the header itself is right
        spans = {name: tensor["data_offsets"] for name, tensor in header.items() if name != "__metadata__"}
        name, (start, end) = next(iter(spans.items()))
        for count in (end - start, (end - start) // 2, (end - start) // 8, 2 * (end - start), 4 * (end - start) // 3):
            write(
                json.dumps(header | {name: {"dtype": dtype, "shape": [count], "data_offsets": [start, end]}}).encode()
            )
            assert not _works_or_says(folder, "model.safetensors: ")
    for size in (0, 1, length + 1, 10**8 + 1, 2**63, 2**64 - 1):
        write(json.dumps(header).encode(), size)
        assert not _works_or_says(folder, "model.safetensors: ")
    for kept in (0, 1, 7, 8, 9, 100, 8 + length, len(data) - 1):
        path.write_bytes(data[:kept])
        assert not _works_or_says(folder, "model.safetensors: ")


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_folder_in_place_of_a_file_is_one_line(folder: Path, file: str) -> None:
    (folder / file).unlink()
    (folder / file).mkdir()
    assert not _works_or_says(folder, f"{file}: ")


def test_the_command_line_says_it_in_one_line_with_exit_code_2(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": None}))
    run = ttgpt("compress", folder, "--method", "dense", "--out", folder.parent / "out")
    assert run.returncode == 2
    assert run.stderr == "error: config.json: eos_token_id must be an integer in [0, 300), not None\n"
    assert not (folder.parent / "out").exists()


SMALLEST = {
    "two positions": replace(SHAPE, n_positions=2),
    "three positions": replace(SHAPE, n_positions=3),
    "one layer, one head, one inner": replace(SHAPE, n_layer=1, n_head=1, n_inner=1),
    "one column": replace(SHAPE, n_embd=1, n_head=1, n_inner=1),
}


@pytest.mark.parametrize("method", ["dense", "quantize"])
@pytest.mark.parametrize("case", SMALLEST)
def test_the_smallest_legal_models_are_made_and_read(case: str, method: str, tmp_path: Path) -> None:
    huggingface.export(tiny_model(SMALLEST[case]), TOKENIZER, tmp_path / "tiny")
    text = tmp_path / "story.txt"
    text.write_text("The tide was out, and the boats leaned upon the hard.")
    checkpoint = huggingface.load(str(tmp_path / "tiny"))
    build(Context(checkpoint=checkpoint), Recipe(method=method, options={}), tmp_path / "out", text=text)
    assert stored.read(tmp_path / "out").config == SMALLEST[case]
