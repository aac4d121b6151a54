"""Read any GPT-2-architecture checkpoint in Hugging Face's layout, and write dense ones back.

Only safetensors are read: no pickle, no remote code. Works without `transformers`, whose
GPT2LMHeadModel is the reference in the tests.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from compressor.artifact import Source
from compressor.codecs import float_codec
from compressor.errors import CheckpointError
from compressor.formats import Dense
from compressor.gpt2 import GPT2, GPT2Config

EMBEDDED = "gpt2-mini"
EMBEDDED_FOLDER = Path(__file__).parent / "reference"
END_OF_TEXT = "<|endoftext|>"
DOWNLOADS = ["config.json", "model*.safetensors", "model.safetensors.index.json", "tokenizer.json", "vocab.json"]
DOWNLOADS += ["merges.txt"]
# Names that older checkpoints carry and that hold nothing: causal masks.
MASKS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")


@dataclass(frozen=True)
class Checkpoint:
    """A dense model as it was found: matrices in the checkpoint's own dtype, on the `dense` path."""

    model: GPT2
    tokenizer_json: bytes
    source: Source
    vector_codec: str


def load(model: str) -> Checkpoint:
    """Return the checkpoint called `model`: "gpt2-mini" (embedded), a folder, or a hub id.

    Raises:
        CheckpointError: if there is none, or it is not a GPT-2 in safetensors.
    """
    folder = _locate(model)
    config = _read_config(folder)
    tensors, sha256 = _read_tensors(folder)
    decoder, vector_codec = _build(config, tensors)
    tokenizer_json = _read_tokenizer(folder, config)
    name = EMBEDDED if model == EMBEDDED else model.rstrip("/")
    name = Path(name).resolve().name if Path(name).is_dir() else name
    return Checkpoint(decoder, tokenizer_json, Source(id=name, sha256=sha256), vector_codec)


def embedded_sha256() -> str:
    """Return the sha256 of the embedded model's weights."""
    with (EMBEDDED_FOLDER / "model.safetensors").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def export(model: GPT2, tokenizer_json: bytes, folder: Path) -> None:
    """Write `model`, decoded to dense fp32, as a checkpoint that `transformers` loads.

    Raises:
        CheckpointError: if `folder` exists.
    """
    if folder.exists():
        raise CheckpointError(f"out: {folder} exists already; choose another folder")
    tensors = {f"transformer.{name}": vector.contiguous() for name, vector in model.vectors().items()}
    for name, form in model.matrices().items():
        dense = form.dense()
        if name.startswith("h."):
            dense = dense.T  # Conv1D keeps [in, out]
        tensors[name + ".weight" if name == "lm_head" else f"transformer.{name}.weight"] = dense.contiguous()
    folder.mkdir(parents=True)
    c = model.config
    config = {
        **{name: getattr(c, name) for name in c.__dataclass_fields__},
        "architectures": ["GPT2LMHeadModel"],
        "bos_token_id": c.eos_token_id,
        "model_type": "gpt2",
        "tie_word_embeddings": model.lm_head is None,
        "torch_dtype": "float32",
    }
    tokenizer_config = {
        "tokenizer_class": "GPT2TokenizerFast",
        "model_max_length": c.n_positions,
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "unk_token": END_OF_TEXT,
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=2) + "\n")
    (folder / "tokenizer.json").write_bytes(tokenizer_json)


def _locate(model: str) -> Path:
    if model == EMBEDDED:
        return EMBEDDED_FOLDER
    if Path(model).is_dir():
        return Path(model)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model) or model.startswith("."):
        raise CheckpointError(f"model: there is no folder {model!r}; give {EMBEDDED!r}, a folder or a hub id")
    try:
        return Path(huggingface_hub.snapshot_download(model, allow_patterns=DOWNLOADS))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"model: {model!r} is neither {EMBEDDED!r} nor a folder, and the hub did not give it ({reason})"
        ) from error


def _read_config(folder: Path) -> GPT2Config:
    raw = _load_json(folder / "config.json")
    if raw.get("model_type") != "gpt2":
        raise CheckpointError(f"config.json: model_type must be 'gpt2', not {raw.get('model_type')!r}")
    for field, neutral in (("add_cross_attention", False), ("scale_attn_weights", True)):
        if raw.get(field, neutral) is not neutral:
            raise CheckpointError(f"config.json: {field} must be {neutral}, not {raw[field]}")
    try:
        return GPT2Config(
            vocab_size=raw["vocab_size"],
            n_positions=raw.get("n_positions", 1024),
            n_embd=raw["n_embd"],
            n_layer=raw["n_layer"],
            n_head=raw["n_head"],
            n_inner=raw.get("n_inner") or 4 * raw["n_embd"],
            eos_token_id=_first(raw.get("eos_token_id", raw["vocab_size"] - 1)),
            layer_norm_epsilon=raw.get("layer_norm_epsilon", 1e-5),
            activation_function=raw.get("activation_function", "gelu_new"),
            scale_attn_by_inverse_layer_idx=raw.get("scale_attn_by_inverse_layer_idx", False),
        )
    except KeyError as error:
        raise CheckpointError(f"config.json: {error.args[0]} is missing") from error
    except ValueError as error:
        raise CheckpointError(f"config.json: {error}") from error


def _read_tensors(folder: Path) -> tuple[dict[str, Tensor], str | dict[str, str]]:
    """Return all tensors, without the `transformer.` prefix, and the sha256 of their file or, by name, files."""
    index, whole = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if whole.is_file():
        files = [whole]
    elif index.is_file():
        files = [folder / Path(name).name for name in sorted(set(_load_json(index)["weight_map"].values()))]
    else:
        raise CheckpointError(
            f"model.safetensors: is missing in {folder}; pickled weights are not read, convert them first with "
            "transformers: GPT2LMHeadModel.from_pretrained(...).save_pretrained(...)"
        )
    tensors: dict[str, Tensor] = {}
    checksums = {}
    for file in files:
        try:
            loaded = load_file(file)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file.name}: is not a safetensors file: {error}") from error
        with file.open("rb") as handle:
            checksums[file.name] = hashlib.file_digest(handle, "sha256").hexdigest()
        tensors |= {name.removeprefix("transformer."): tensor for name, tensor in loaded.items()}
    return tensors, checksums[whole.name] if whole in files else checksums


def _build(config: GPT2Config, tensors: dict[str, Tensor]) -> tuple[GPT2, str]:
    """Return the model and the codec that keeps its vectors as they are."""
    tensors = {name: _as_stored(name, tensor) for name, tensor in tensors.items() if not MASKS.fullmatch(name)}
    head = tensors.pop("lm_head.weight", None)
    matrices, vectors = {}, {}
    for name, (out_features, in_features) in config.matrix_shapes().items():
        is_conv1d = name.startswith("h.")  # Conv1D keeps [in, out]
        shape = (in_features, out_features) if is_conv1d else (out_features, in_features)
        tensor = _take(tensors, f"{name}.weight", shape)
        matrix = tensor.T.contiguous() if is_conv1d else tensor
        matrices[name] = Dense.of(matrix, float_codec(tensor.dtype).name)
    for name, vector_shape in config.vector_shapes().items():
        vectors[name] = _take(tensors, name, vector_shape)
    if tensors:
        raise CheckpointError(f"model.safetensors: {min(tensors)} is not a tensor of a GPT-2")
    if head is not None and not torch.equal(head, matrices["wte"].matrix.parts()["values"]):
        matrices["lm_head"] = Dense.of(head, float_codec(head.dtype).name)
    try:
        return GPT2(config, matrices, vectors), float_codec(vectors["ln_f.weight"].dtype).name
    except ValueError as error:
        raise CheckpointError(f"model.safetensors: {error}") from error


def _as_stored(name: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        raise CheckpointError(f"model.safetensors: {name} must hold floating-point numbers, not {tensor.dtype}")
    return tensor.float() if tensor.dtype == torch.float64 else tensor


def _take(tensors: dict[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    if name not in tensors:
        raise CheckpointError(f"model.safetensors: {name} is missing")
    tensor = tensors.pop(name)
    if tuple(tensor.shape) != shape:
        raise CheckpointError(f"model.safetensors: {name} must have shape {list(shape)}, not {list(tensor.shape)}")
    if not torch.isfinite(tensor).all():
        raise CheckpointError(f"model.safetensors: {name} must be finite")
    return tensor


def _read_tokenizer(folder: Path, config: GPT2Config) -> bytes:
    """Return tokenizer.json, made from vocab.json and merges.txt where there is none."""
    path = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path)) if path.is_file() else _from_merges(folder)
    except CheckpointError:
        raise
    except Exception as error:  # tokenizers raises bare Exception
        raise CheckpointError(f"tokenizer.json: is not a tokenizer: {error}") from error
    if tokenizer.get_vocab_size() > config.vocab_size:
        size = tokenizer.get_vocab_size()
        raise CheckpointError(f"tokenizer.json: has {size} tokens, more than vocab_size = {config.vocab_size}")
    return path.read_bytes() if path.is_file() else tokenizer.to_str(pretty=True).encode()


def _from_merges(folder: Path) -> Tokenizer:
    vocab, merges = folder / "vocab.json", folder / "merges.txt"
    if not (vocab.is_file() and merges.is_file()):
        raise CheckpointError(f"tokenizer.json: is missing in {folder}, and so are vocab.json and merges.txt")
    tokenizer = Tokenizer(models.BPE.from_file(str(vocab), str(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True)])
    return tokenizer


def _load_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.name}: is missing in {path.parent}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name}: is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path.name}: must be a JSON object")
    return value


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) and value else value
