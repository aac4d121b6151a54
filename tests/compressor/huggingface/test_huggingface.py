"""Reading checkpoints: what is refused, and that nothing is lost on the way back."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer, GPT2LMHeadModel
from transformers import GPT2Config as PeerConfig

from compressor import huggingface, stored
from compressor.errors import CheckpointError
from compressor.recipes.build import build
from compressor.recipes.context import Context
from compressor.recipes.plans import Recipe
from tests.compressor.huggingface.conftest import edit
from tests.conftest import TOKENIZER, tiny_model
from tests.tolerances import PARITY


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
    assert all(torch.equal(again.vectors()[name].decode(), vector.decode()) for name, vector in model.vectors().items())


def test_the_checkpoints_dtype_is_kept() -> None:
    checkpoint = huggingface.load("gpt2-mini")
    assert {codec for form in checkpoint.model.matrices().values() for codec in form.spec().codecs.values()} == {"fp16"}
    assert checkpoint.model.vector_codec == "fp16"


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
    edit(folder, **changes)
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


@pytest.mark.parametrize(("name", "number"), [("transformer.ln_f.bias", "nan"), ("lm_head.weight", "inf")])
def test_numbers_that_are_not_finite_are_refused(folder: Path, name: str, number: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    tensors[name][3] = float(number)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"{name.removeprefix('transformer.')} must be finite"):
        huggingface.load(str(folder))


def test_values_that_overflow_name_the_tensor(folder: Path, tmp_path: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["transformer.h.0.mlp.c_fc.bias"][3] = 1e5
    save_file(tensors, path)
    text = tmp_path / "story.txt"
    text.write_text("The tide was out.")
    recipe = Recipe(method="dense", options={}, rest="fp16")
    with pytest.raises(ValueError, match=r"^h\.0\.mlp\.c_fc\.bias: values must be finite and within the range of fp16"):
        build(Context(checkpoint=huggingface.load(str(folder))), recipe, tmp_path / "out", text=text)
    tensors["transformer.h.1.attn.c_attn.weight"][0, 0] = 1e5
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"^h\.1\.attn\.c_attn: values must be finite and within the range of fp16"):
        build(Context(checkpoint=huggingface.load(str(folder))), recipe, tmp_path / "out", text=text)
    save_file({name: tensor.double() * 1e300 for name, tensor in tensors.items()}, path)
    with pytest.raises(CheckpointError, match=r"wte\.weight must be finite and within the range of fp32"):
        huggingface.load(str(folder))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool])
def test_other_dtypes_are_refused_by_name(folder: Path, dtype: torch.dtype) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.wpe.weight"] = tensors["transformer.wpe.weight"].to(dtype)
    save_file(tensors, folder / "model.safetensors")
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(CheckpointError, match=f"wpe.weight must be one of float32, .*, not {kind}; convert it"):
        huggingface.load(str(folder))


def test_every_tensor_keeps_its_own_dtype(folder: Path, tmp_path: Path) -> None:
    kinds = itertools.cycle([torch.float16, torch.float32, torch.bfloat16])
    tensors = {name: t.to(next(kinds)) for name, t in load_file(folder / "model.safetensors").items()}
    tensors["transformer.ln_f.weight"] = tensors["transformer.ln_f.weight"].to(torch.float16)
    save_file(tensors, folder / "model.safetensors")
    text = tmp_path / "story.txt"
    text.write_text("The tide was out.")
    build(
        Context(checkpoint=huggingface.load(str(folder))),
        Recipe(method="dense", options={}),
        tmp_path / "out",
        text=text,
    )
    model = stored.gpt2(stored.read(tmp_path / "out"))
    for name, vector in model.vectors().items():
        assert torch.equal(vector.decode(), tensors[f"transformer.{name}"].float()), name
    for name, form in model.matrices().items():
        kept = tensors[f"transformer.{name}.weight"].float()
        assert torch.equal(form.dense(), kept.T if name.startswith("h.") else kept), name


WRAPPED = {
    "DDP": "module.{}",
    "torch.compile": "_orig_mod.{}",
    "both": "module._orig_mod.{}",
    "both the other way": "_orig_mod.module.{}",
    "below the class": "transformer._orig_mod.{0}",
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_wrappers_in_names_are_seen_through(folder: Path, wrapper: str) -> None:
    path = folder / "model.safetensors"
    names = {name: WRAPPED[wrapper].format(name) for name in load_file(path)}
    if wrapper == "below the class":
        names = {name: WRAPPED[wrapper].format(name.removeprefix("transformer.")) for name in names}
    save_file({names[name]: tensor for name, tensor in load_file(path).items()}, path)
    again = huggingface.load(str(folder)).model
    assert torch.equal(again.matrices()["h.1.mlp.c_fc"].dense(), tiny_model().matrices()["h.1.mlp.c_fc"].dense())


def test_a_tensor_that_is_there_twice_is_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"module.wte.weight": tensors["transformer.wte.weight"].flip(0).contiguous()}, path)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: wte\.weight is there twice"):
        huggingface.load(str(folder))


HEADS = {
    "score": {"score.weight": torch.ones(2, 32)},
    "multiple choice": {
        "multiple_choice_head.summary.weight": torch.ones(1, 32),
        "multiple_choice_head.summary.bias": torch.ones(1),
    },
    "token classes": {"classifier.weight": torch.ones(3, 32), "classifier.bias": torch.ones(3)},
    "answers": {"qa_outputs.weight": torch.ones(2, 32), "qa_outputs.bias": torch.ones(2)},
    "value": {"v_head.summary.weight": torch.ones(1, 32), "v_head.summary.bias": torch.ones(1)},
}


@pytest.mark.parametrize("head", HEADS)
def test_a_head_beside_the_language_model_is_left_out_with_a_line(folder: Path, head: str) -> None:
    path = folder / "model.safetensors"
    save_file(load_file(path) | HEADS[head], path)
    checkpoint = huggingface.load(str(folder))
    (note,) = checkpoint.notes
    assert all(name in note for name in HEADS[head])
    assert checkpoint.model.matrices().keys() == tiny_model().matrices().keys()
    save_file(load_file(path) | {"scores.weight": torch.ones(2, 32)}, path)
    with pytest.raises(CheckpointError, match=r"scores\.weight is not a tensor of a GPT-2"):
        huggingface.load(str(folder))


def test_an_untied_head_that_is_missing_is_refused(folder: Path) -> None:
    edit(folder, tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is missing, though tie_word_embeddings is false"):
        huggingface.load(str(folder))


def test_of_two_names_for_a_tied_table_either_will_do(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors.pop("transformer.wte.weight")
    save_file(tensors, path)
    model = huggingface.load(str(folder)).model
    assert model.lm_head is None
    assert torch.equal(model.wte.dense(), tiny_model().wte.dense())


def test_the_dense_size_of_an_untied_model_counts_its_head(folder: Path, tmp_path: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"lm_head.weight": tensors["transformer.wte.weight"].flip(0).contiguous()}, path)
    edit(folder, tie_word_embeddings=False)
    text = tmp_path / "story.txt"
    text.write_text("The tide was out.")
    checkpoint = huggingface.load(str(folder))
    parameters = sum(t.numel() for t in load_file(path).values())
    for method, rest, ratio in (("dense", None, 1.0), ("quantize", None, 3.3)):
        manifest = build(
            Context(checkpoint=checkpoint), Recipe(method=method, options={}, rest=rest), tmp_path / method, text=text
        )
        assert manifest.dense_bytes == 4 * parameters
        assert manifest.dense_bytes / manifest.weight_bytes >= ratio
    assert manifest.dense_bytes / manifest.weight_bytes < 4


def test_several_ends_of_text_are_read_as_the_first_with_a_line(folder: Path) -> None:
    edit(folder, eos_token_id=[7, 5])
    checkpoint = huggingface.load(str(folder))
    assert checkpoint.model.config.eos_token_id == 7
    assert "eos_token_id has 2 tokens, of which only the first, 7" in checkpoint.notes[0]
    edit(folder, eos_token_id=[7])
    assert huggingface.load(str(folder)).notes == ()


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    **{name: {"activation_function": name} for name in ("relu", "silu", "swish", "tanh", "quick_gelu")},
    **{name: {"activation_function": name} for name in ("gelu", "gelu_python", "gelu_fast", "gelu_pytorch_tanh")},
    **{name: {"activation_function": name} for name in ("gelu_new", "gelu_accurate", "gelu_python_tanh")},
    "no scale": {"scale_attn_weights": False},
    "no scale, wide": {"scale_attn_weights": False, "n_head": 1},
    "scale by layer": {"scale_attn_by_inverse_layer_idx": True},
    "scale by layer alone": {"scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False},
    "untied": {"tie_word_embeddings": False},
    "epsilon": {"layer_norm_epsilon": 0.01},
    "narrow": {"n_inner": 40},
    "upcast": {"reorder_and_upcast_attn": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_accepted_kind_is_what_transformers_computes(kind: str, tmp_path: Path) -> None:
    shape = {"vocab_size": 16384, "n_positions": 64, "n_embd": 32, "n_layer": 3, "n_head": 4, "eos_token_id": 0}
    torch.manual_seed(0)
    peer = GPT2LMHeadModel(PeerConfig(**(shape | {"bos_token_id": 0} | KINDS[kind]))).eval()
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    peer.save_pretrained(tmp_path / "peer")
    (tmp_path / "peer" / "tokenizer.json").write_bytes(TOKENIZER)
    model = huggingface.load(str(tmp_path / "peer")).model.expanded()
    ids = torch.randint(16384, (2, 30), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = peer(ids).logits
        assert (model.logits(model(ids)) - expected).abs().max() <= PARITY
    huggingface.export(model, TOKENIZER, tmp_path / "export")
    again = GPT2LMHeadModel.from_pretrained(tmp_path / "export").eval()
    with torch.inference_mode():
        assert (again(ids).logits - expected).abs().max() <= PARITY


@pytest.mark.parametrize("name", ["./nowhere", "no where", "somebody/no-such-model"])
def test_a_model_that_does_not_exist_is_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"^model: "):
        huggingface.load(name)


def test_exporting_over_something_is_refused(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="exists already"):
        huggingface.export(tiny_model(), TOKENIZER, folder)
