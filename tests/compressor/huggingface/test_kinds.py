"""Every kind of checkpoint that transformers loads gives the model that transformers makes of it, or one line."""

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GPT2LMHeadModel

from compressor import huggingface
from compressor.artifact.tokenizer import read_tokenizer
from compressor.errors import CheckpointError
from tests.benchmarks.gguf_export import export as write_gguf
from tests.compressor.huggingface.conftest import edit
from tests.conftest import TINY, TOKENIZER, tiny_model
from tests.tolerances import PARITY

PICKLE, INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
IDS = torch.randint(TINY.vocab_size, (2, 30), generator=torch.Generator().manual_seed(0))


def _taken(folder: Path) -> dict[str, Tensor]:
    """Return the tensors, and take their file away."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    return tensors


def _save_pickled(folder: Path, tensors: dict[str, Any], file: str = PICKLE) -> None:
    torch.save(tensors, folder / file)


def _pickled(folder: Path) -> None:
    _save_pickled(folder, _taken(folder))


def _pickled_in_the_old_way(folder: Path) -> None:
    torch.save(_taken(folder), folder / PICKLE, _use_new_zipfile_serialization=False)


def _pickled_in_shards(folder: Path) -> None:
    tensors = _taken(folder)
    names = sorted(tensors)
    shards = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for file, kept in shards.items():
        _save_pickled(folder, {name: tensors[name] for name in kept}, file)
    index = {"metadata": {}, "weight_map": {name: file for file, kept in shards.items() for name in kept}}
    (folder / INDEX).write_text(json.dumps(index))


def _prefixless(folder: Path) -> None:
    _save_pickled(folder, {name.removeprefix("transformer."): tensor for name, tensor in _taken(folder).items()})


def _untied(folder: Path) -> None:
    tensors = _taken(folder)
    head = tensors["transformer.wte.weight"].flip(0).contiguous()
    _save_pickled(folder, tensors | {"lm_head.weight": head})
    edit(folder, tie_word_embeddings=False)


def _resized(folder: Path) -> None:
    model = GPT2LMHeadModel.from_pretrained(folder)
    model.resize_token_embeddings(TINY.vocab_size + 8)
    model.save_pretrained(folder)
    _pickled(folder)


def _of_views(folder: Path) -> None:
    """Tensors that lie in one storage, not in their order, as torch.save keeps views."""
    tensors = _taken(folder)
    together = torch.cat([tensor.flatten() for tensor in tensors.values()])
    parts = together.split([tensor.numel() for tensor in tensors.values()])
    _save_pickled(folder, {n: part.view(t.shape) for (n, t), part in zip(tensors.items(), parts, strict=True)})


def _in(dtype: torch.dtype, *, pickled: bool) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tensors = {name: tensor.to(dtype) for name, tensor in _taken(folder).items()}
        if pickled:
            _save_pickled(folder, tensors)
        else:
            save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        edit(folder, torch_dtype=str(dtype).removeprefix("torch."))

    return change


DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
KINDS: dict[str, Callable[[Path], None]] = {
    "pickled": _pickled,
    "pickled in the old way": _pickled_in_the_old_way,
    "pickled in shards": _pickled_in_shards,
    "prefixless": _prefixless,
    "untied": _untied,
    "resized": _resized,
    "of views": _of_views,
}
KINDS |= {f"{dtype}, safetensors": _in(dtype, pickled=False) for dtype in DTYPES}
KINDS |= {f"{dtype}, pickled": _in(dtype, pickled=True) for dtype in DTYPES}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_the_model_that_transformers_makes_of_it(kind: str, folder: Path) -> None:
    KINDS[kind](folder)
    checkpoint = huggingface.load(str(folder))
    peer = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        assert (checkpoint.model.logits(checkpoint.model(IDS)) - peer(IDS).logits).abs().max() <= PARITY
    found = checkpoint.source.sha256
    assert isinstance(found, str) or found.keys() == {path.name for path in folder.glob("pytorch_model-*")}


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_value_of_a_pickle_is_kept(dtype: torch.dtype, folder: Path) -> None:
    _in(dtype, pickled=True)(folder)
    checkpoint = huggingface.load(str(folder))
    assert torch.equal(checkpoint.model.wte.dense(), tiny_model().wte.dense().to(dtype).float())
    size = sum(form.num_bytes for form in checkpoint.model.matrices().values())
    values = sum(out * columns for out, columns in TINY.matrix_shapes().values())
    assert size == values * min(max(dtype.itemsize, 2), 4)


class _Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("old", [False, True])
def test_a_pickle_is_never_executed(old: bool, folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "touched"
    tensors = _taken(folder) | {"evil": _Malicious(target)}
    torch.save(tensors, folder / PICKLE, _use_new_zipfile_serialization=not old)
    with pytest.raises(CheckpointError, match=r"^pytorch_model\.bin: is damaged, or holds more than tensors, of which"):
        huggingface.load(str(folder))
    (folder / PICKLE).write_bytes(pickle.dumps({"evil": _Malicious(target)}))
    with pytest.raises(CheckpointError, match=r"nothing was run"):
        huggingface.load(str(folder))
    assert not target.exists()
    torch.load(_written(folder / "run.bin", _Malicious(target)), weights_only=False)  # it would have
    assert target.exists()


def _written(path: Path, value: object) -> Path:
    torch.save(value, path)
    return path


BROKEN: dict[str, tuple[Any, str]] = {
    "a list": ([torch.ones(1)], "must be a dict of tensors, not list"),
    "a number": ({"wte.weight": 1}, "'wte.weight' must be a tensor, not int"),
    "numbered": ({1: torch.ones(1)}, "1 must be a tensor"),
    "sparse": ({"wte.weight": torch.eye(4).to_sparse()}, "wte.weight must be a dense tensor"),
    "larger than its file": ({"wte.weight": torch.ones(1).expand(2**40)}, "no larger than its file"),
    "empty": ({}, "wte.weight is missing"),
    "whole numbers": (
        {"wte.weight": torch.ones(4, dtype=torch.int8)},
        "wte.weight must be one of float32, .*, not int8",
    ),
    "another's": ({"model.embed_tokens.weight": torch.ones(4)}, "wte.weight is missing"),
    "misshapen": ({"wte.weight": torch.ones(4, 4)}, r"wte.weight must have shape \[16384, 32\], not \[4, 4\]"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_pickle_that_is_no_gpt_2_is_refused_by_name(case: str, folder: Path) -> None:
    _taken(folder)
    content, message = BROKEN[case]
    torch.save(content, folder / PICKLE)
    with pytest.raises(CheckpointError, match=rf"^pytorch_model\.bin: .*{message}") as caught:
        huggingface.load(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [0, 1, 7, 100, 1000, -1])
def test_a_pickle_that_is_cut_off_is_refused_by_name(kept: int, folder: Path) -> None:
    _pickled(folder)
    (folder / PICKLE).write_bytes((folder / PICKLE).read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"^pytorch_model\.bin: is damaged"):
        huggingface.load(str(folder))


def test_values_of_a_pickle_that_are_not_finite_are_refused(folder: Path) -> None:
    tensors = _taken(folder)
    tensors["transformer.ln_f.bias"][3] = float("nan")
    _save_pickled(folder, tensors)
    with pytest.raises(CheckpointError, match=r"^pytorch_model\.bin: ln_f\.bias must be finite"):
        huggingface.load(str(folder))


def test_a_missing_shard_of_a_pickle_is_called_missing(folder: Path) -> None:
    _pickled_in_shards(folder)
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(CheckpointError, match=r"^pytorch_model-00002-of-00002\.bin: is missing in .*, though pytorch_"):
        huggingface.load(str(folder))


def test_safetensors_are_read_where_a_pickle_is_beside_them(folder: Path) -> None:
    (folder / PICKLE).write_bytes(b"no pickle")
    assert torch.equal(huggingface.load(str(folder)).model.wte.dense(), tiny_model().wte.dense())


@pytest.mark.parametrize("pickled", [False, True])
def test_code_in_a_checkpoint_is_not_run(pickled: bool, folder: Path, tmp_path: Path) -> None:
    edit(
        folder, auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model", "AutoTokenizer": "evil.T"}
    )
    (folder / "evil.py").write_text(f"import pathlib; pathlib.Path({str(tmp_path / 'touched')!r}).touch()")
    model = json.loads(TOKENIZER)["model"]
    (folder / "tokenizer.json").unlink()  # so that transformers is asked for a tokenizer, too
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("\n".join(" ".join(pair) for pair in model["merges"]))
    if pickled:
        _pickled(folder)
    checkpoint = huggingface.load(str(folder))
    assert torch.equal(checkpoint.model.wte.dense(), tiny_model().wte.dense())
    assert not (tmp_path / "touched").exists()


# GGUF's blocks: what a value may be off by, of the largest in its block of 32; halves keep 11 bits.
GGUF_STEP = {"F16": 2**-11, "Q8_0": 2**-7, "Q4_0": 2**-2}


@pytest.mark.parametrize("kind", GGUF_STEP)
def test_a_gguf_file_is_read(kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model, file = tiny_model(), tmp_path / f"{kind}.gguf"
    write_gguf(model, json.loads(TOKENIZER), file, kind)
    checkpoint = huggingface.load(str(file))
    assert checkpoint.source.id == file.name
    epsilon = checkpoint.model.config.layer_norm_epsilon
    assert checkpoint.model.config == replace(model.config, layer_norm_epsilon=epsilon)
    assert epsilon == pytest.approx(model.config.layer_norm_epsilon, rel=1e-7)  # GGUF keeps it in fp32
    for name, form in model.matrices().items():
        blocks = form.dense().reshape(-1, 32)
        off = (checkpoint.model.matrices()[name].dense().reshape(-1, 32) - blocks).abs().amax(1)
        assert (off <= GGUF_STEP[kind] * blocks.abs().amax(1)).all(), name
    for name, vector in model.vectors().items():
        assert torch.equal(checkpoint.model.vectors()[name].decode(), vector.decode())
    text = "It was the old man's boat -- \N{SNOWMAN}<|endoftext|>"
    tokens = [read_tokenizer(data).encode(text).ids for data in (checkpoint.tokenizer_json, TOKENIZER)]
    assert tokens[0] == tokens[1]
    assert checkpoint.end_of_text == "<|endoftext|>"
    assert capfd.readouterr() == ("", "")


def test_code_beside_a_gguf_file_is_not_run(tmp_path: Path) -> None:
    write_gguf(tiny_model(), json.loads(TOKENIZER), tmp_path / "tiny.gguf", "F16")
    classes = {"AutoConfig": "evil.Config", "AutoTokenizer": ["evil.T", "evil.T"]}
    for name in ("config.json", "tokenizer_config.json"):
        (tmp_path / name).write_text(json.dumps({"auto_map": classes, "tokenizer_class": "T"}))
    (tmp_path / "evil.py").write_text(f"import pathlib; pathlib.Path({str(tmp_path / 'touched')!r}).touch()")
    assert huggingface.load(str(tmp_path / "tiny.gguf")).model.config.n_layer == TINY.n_layer
    assert not (tmp_path / "touched").exists()


def _foreign(path: Path) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_head_count(4)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _cut(path: Path, kept: int) -> None:
    write_gguf(tiny_model(), json.loads(TOKENIZER), path, "Q8_0")
    path.write_bytes(path.read_bytes()[:kept])


BROKEN_GGUF: dict[str, Callable[[Path], object]] = {
    "another architecture": _foreign,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("a text"),
    "its magic alone": lambda path: _cut(path, 4),
    "half a header": lambda path: _cut(path, 1000),
    "half its tensors": lambda path: _cut(path, 600_000),
    "a pointer": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"),
}


@pytest.mark.parametrize("case", BROKEN_GGUF)
def test_a_damaged_gguf_file_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    BROKEN_GGUF[case](path)
    with pytest.raises(CheckpointError, match=r"^broken\.gguf: ") as caught:
        huggingface.load(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["safetensors", "pickled", "GGUF"])
def test_a_checkpoint_of_the_hub_is_read_whatever_its_kind(
    kind: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "pickled":
        _pickled(folder)
    elif kind == "GGUF":
        shutil.rmtree(folder)
        folder.mkdir()
        write_gguf(tiny_model(), json.loads(TOKENIZER), folder / "tiny.gguf", "F16")
    kept = tmp_path / "models--someone--tiny"  # as downloaded before
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("0" * 40)
    shutil.move(folder, kept / "snapshots" / ("0" * 40))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    checkpoint = huggingface.load("someone/tiny")
    assert checkpoint.source.id == "someone/tiny"
    assert (checkpoint.model.wte.dense() - tiny_model().wte.dense()).abs().max() <= GGUF_STEP["F16"] * 2


def test_of_several_gguf_files_one_must_be_named(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=r"has 2 GGUF files; give one of them, such as a\.gguf"):
        huggingface.load(str(tmp_path))


def test_without_the_package_a_gguf_file_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tiny_model(), json.loads(TOKENIZER), tmp_path / "tiny.gguf", "F16")
    monkeypatch.setitem(sys.modules, "gguf", None)  # as if it were not installed
    with pytest.raises(
        CheckpointError, match=r"^tiny\.gguf: is read with the package gguf; pip install 'ttgpt\[gguf\]'"
    ):
        huggingface.load(str(tmp_path))


def test_the_embedded_checkpoint_is_read_without_transformers() -> None:
    code = "import sys; from compressor import huggingface; huggingface.load('gpt2-mini'); print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "transformers" not in run.stdout.split()
