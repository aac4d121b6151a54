"""Reading checkpoints: what is refused, and that nothing is lost on the way back."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer, GPT2LMHeadModel

from compressor import huggingface
from compressor.errors import CheckpointError
from tests.conftest import tiny_model
from tests.tolerances import PARITY

TOKENIZER = (huggingface.EMBEDDED_FOLDER / "tokenizer.json").read_bytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dense checkpoint in Hugging Face's layout."""
    huggingface.export(tiny_model(), TOKENIZER, tmp_path / "tiny")
    return tmp_path / "tiny"


def _edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_an_export_is_what_transformers_computes(folder: Path) -> None:
    model, ids = tiny_model(), torch.arange(20).unsqueeze(0)
    peer = GPT2LMHeadModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        assert (peer(ids).logits - model.logits(model(ids))).abs().max() <= PARITY
    text = "It was the old man's boat -- \N{SNOWMAN}"
    assert AutoTokenizer.from_pretrained(folder).encode(text) == Tokenizer.from_str(TOKENIZER.decode()).encode(text).ids


def test_an_export_reads_back_bit_for_bit(folder: Path) -> None:
    model, again = tiny_model(), huggingface.load(str(folder)).model
    for name, form in model.matrices().items():
        assert torch.equal(again.matrices()[name].dense(), form.dense())
    assert all(torch.equal(again.vectors()[name], vector) for name, vector in model.vectors().items())


def test_the_checkpoints_dtype_is_kept() -> None:
    checkpoint = huggingface.load("gpt2-mini")
    assert {codec for form in checkpoint.model.matrices().values() for codec in form.spec().codecs.values()} == {"fp16"}
    assert checkpoint.vector_codec == "fp16"


def test_sharded_prefixless_and_double_precision_checkpoints_are_read(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors = {name.removeprefix("transformer."): tensor.double() for name, tensor in tensors.items()}
    tensors["h.0.attn.bias"] = torch.ones(1, 1, 64, 64, dtype=torch.float64)  # the old causal mask
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, kept in shards.items():
        save_file({name: tensors[name] for name in kept}, folder / file)
    weight_map = {name: file for file, kept in shards.items() for name in kept}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "model.safetensors").unlink()
    again = huggingface.load(str(folder)).model
    assert torch.equal(again.wte.dense(), tiny_model().wte.dense())


def test_a_tokenizer_is_made_of_vocab_and_merges(folder: Path) -> None:
    model = json.loads(TOKENIZER)["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in model["merges"]) + "\n")
    made = Tokenizer.from_str(huggingface.load(str(folder)).tokenizer_json.decode())
    text = "The harbour, in 1902 -- \N{GRINNING FACE}<|endoftext|>"
    assert made.encode(text).ids == Tokenizer.from_str(TOKENIZER.decode()).encode(text).ids
    assert made.decode(made.encode(text).ids) == text.removesuffix("<|endoftext|>")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type must be 'gpt2', not 'llama'"),
        ({"model_type": "ttgpt"}, "model_type must be 'gpt2', not 'ttgpt'"),
        ({"add_cross_attention": True}, "add_cross_attention must be False, not True"),
        ({"activation_function": "mish"}, "activation_function must be one of"),
        ({"n_embd": 64}, r"wte.weight must have shape \[16384, 64\], not \[16384, 32\]"),
        ({"n_layer": 3}, "h.2.attn.c_attn.weight is missing"),
        ({"n_layer": 1}, "h.1.attn.c_attn.bias is not a tensor of a GPT-2"),
    ],
)
def test_another_architecture_is_refused_by_name(folder: Path, changes: dict[str, object], message: str) -> None:
    _edit(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        huggingface.load(str(folder))


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_or_damaged_file_is_refused_by_name(folder: Path, file: str) -> None:
    (folder / file).write_bytes((folder / file).read_bytes()[:100])
    with pytest.raises(CheckpointError, match=f"^{file}: "):
        huggingface.load(str(folder))
    (folder / file).unlink()
    with pytest.raises(CheckpointError, match=f"^{file}: is missing"):
        huggingface.load(str(folder))


def test_numbers_that_are_not_finite_are_refused(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.ln_f.bias"][3] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"ln_f\.bias must be finite"):
        huggingface.load(str(folder))


def test_pickled_weights_are_not_read(folder: Path) -> None:
    shutil.move(folder / "model.safetensors", folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickled weights are not read"):
        huggingface.load(str(folder))


@pytest.mark.parametrize("name", ["./nowhere", "no where", "somebody/no-such-model"])
def test_a_model_that_does_not_exist_is_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"^model: "):
        huggingface.load(name)


def test_exporting_over_something_is_refused(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="exists already"):
        huggingface.export(tiny_model(), TOKENIZER, folder)
