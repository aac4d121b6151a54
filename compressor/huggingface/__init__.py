"""Read any GPT-2-architecture checkpoint in Hugging Face's layout, and write dense ones back.

Only safetensors are read: no pickle, no remote code. Works without `transformers`, whose
GPT2LMHeadModel is the reference in the tests.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import torch
from safetensors.torch import save_file
from torch import Tensor

from compressor.errors import CheckpointError
from compressor.huggingface import registration
from compressor.huggingface import tokenizer as checkpoint_tokenizer
from compressor.huggingface.config import CheckpointConfig, read_config
from compressor.huggingface.files import check_readable, read_json
from compressor.huggingface.tokenizer import read_checkpoint_tokenizer
from compressor.runtime.artifact import Source
from compressor.runtime.codecs import float_codec
from compressor.runtime.formats import Dense
from compressor.runtime.gpt2 import GPT2
from compressor.runtime.tokenizer import end_of_text, read_tokenizer, tokenizer_config
from compressor.storage import durable, tensor_file

EMBEDDED = "gpt2-mini"
EMBEDDED_FOLDER = Path(__file__).parents[1] / "reference"
INDEX = "model.safetensors.index.json"
DOWNLOADS = ["config.json", "model*.safetensors", INDEX, *checkpoint_tokenizer.FILES]
READ_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
WRAPPERS = {"module", "_orig_mod"}  # parts of names: DataParallel and torch.compile, in any order and place
# What transformers' classes and trl have beside the language model.
HEADS = re.compile(r"(score|classifier|qa_outputs|multiple_choice_head\.summary|v_head\.summary)\.(weight|bias)")
# And names that older checkpoints carry and that hold nothing: causal masks.
LEFT_OUT = re.compile(rf"h\.\d+\.attn\.(bias|masked_bias)|{HEADS.pattern}")

registration.register()


@dataclass(frozen=True)
class Checkpoint:
    """A dense model as it was found.

    Attributes:
        model: matrices in the checkpoint's own dtypes, on the `dense` path.
        tokenizer_json: a tokenizer that cuts nothing and adds nothing.
        source: the checkpoint.
        vector_codec: keeps every bias and LayerNorm vector as it is.
        notes: what the user should know, a line each.
    """

    model: GPT2
    tokenizer_json: bytes
    source: Source
    vector_codec: str
    notes: tuple[str, ...] = ()

    @property
    def end_of_text(self) -> str:
        """What the tokenizer calls the token that ends a text."""
        return end_of_text(read_tokenizer(self.tokenizer_json), self.model.config.eos_token_id)


def load(model: str) -> Checkpoint:
    """Return the checkpoint called `model`: "gpt2-mini" (embedded), a folder, or a hub id.

    Raises:
        CheckpointError: if there is none, or it is not a GPT-2 in safetensors.
    """
    folder = _locate(model)
    described = read_config(folder)
    config = described.gpt2
    tokenizer_json = read_checkpoint_tokenizer(folder, config.vocab_size, config.eos_token_id)
    tensors, sha256 = _read_tensors(folder)
    notes = described.notes
    if heads := sorted(name for name in tensors if HEADS.fullmatch(name)):
        notes += (f"model.safetensors: left out {', '.join(heads)}, which the language model does not use",)
    decoder, vector_codec = _build(described, tensors)
    name = EMBEDDED if model == EMBEDDED else model.rstrip("/")
    name = Path(name).resolve().name if Path(name).is_dir() else name
    return Checkpoint(decoder, tokenizer_json, Source(id=name, sha256=sha256), vector_codec, notes)


def embedded_sha256() -> str:
    """Return the sha256 of the embedded model's weights."""
    with (EMBEDDED_FOLDER / "model.safetensors").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def export(model: GPT2, tokenizer_json: bytes, folder: Path) -> None:
    """Write `model`, decoded to dense fp32, as a checkpoint that `transformers` loads; all of it or nothing.

    Raises:
        CheckpointError: if `folder` exists.
    """
    refuse_existing(folder)
    tensors = {f"transformer.{name}": vector.contiguous() for name, vector in model.vectors().items()}
    for name, form in model.matrices().items():
        dense = form.dense()
        if name.startswith("h."):
            dense = dense.T  # Conv1D keeps [in, out]
        tensors[name + ".weight" if name == "lm_head" else f"transformer.{name}.weight"] = dense.contiguous()
    c = model.config
    for_transformers = tokenizer_config(read_tokenizer(tokenizer_json), c.eos_token_id, c.n_positions)
    config = {
        **{name: getattr(c, name) for name in c.__dataclass_fields__},
        "architectures": ["GPT2LMHeadModel"],
        "bos_token_id": c.eos_token_id,
        "model_type": "gpt2",
        "tie_word_embeddings": model.lm_head is None,
        "torch_dtype": "float32",
    }
    with durable.replacing(folder) as new:
        new.mkdir()
        save_file(tensors, new / "model.safetensors", {"format": "pt"})
        (new / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        (new / "tokenizer_config.json").write_bytes(for_transformers)
        (new / "tokenizer.json").write_bytes(tokenizer_json)


def refuse_existing(folder: Path) -> None:
    """Raise CheckpointError if a folder to be made is there already."""
    if folder.exists():
        raise CheckpointError(f"out: {folder} exists already; choose another folder")


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


def _read_tensors(folder: Path) -> tuple[dict[str, Tensor], str | dict[str, str]]:
    """Return all tensors, without the prefixes of wrappers and of `transformer.`, and the sha256 of their file.

    Of several files, it is by name.
    """
    index, whole = folder / INDEX, folder / "model.safetensors"
    if whole.is_file():
        files = [whole]
    elif index.is_file():
        files = _shards(index)
    else:
        raise CheckpointError(
            f"model.safetensors: is missing in {folder}; pickled weights are not read, convert them first with "
            "transformers: GPT2LMHeadModel.from_pretrained(...).save_pretrained(...)"
        )
    tensors: dict[str, Tensor] = {}
    checksums = {}
    for file in files:
        loaded = _load_shard(file)
        checksums[file.name] = loaded.sha256
        for name, tensor in loaded.tensors.items():
            if (own := _own_name(name)) in tensors:
                raise CheckpointError(f"{file.name}: {own} is there twice")
            tensors[own] = tensor
    return tensors, checksums[whole.name] if whole in files else checksums


def _shards(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(type(v) is str for v in weight_map.values()):
        raise CheckpointError(f"{index.name}: weight_map must be an object that names the file of every tensor")
    files = [index.parent / Path(name).name for name in sorted(set(weight_map.values()))]
    if missing := [file.name for file in files if not file.exists()]:
        raise CheckpointError(f"{missing[0]}: is missing in {index.parent}, though {index.name} names it")
    return files


def _load_shard(file: Path) -> tensor_file.TensorFile:
    check_readable(file)
    try:
        return tensor_file.read(file)
    except OSError as error:
        raise CheckpointError(f"{file.name}: cannot be read in {file.parent}: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{file.name}: is not a safetensors file: {error}") from error


def _own_name(name: str) -> str:
    """Return a tensor's name without what torch.compile, DDP and transformers' classes put before it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS).removeprefix("transformer.")


def _build(described: CheckpointConfig, tensors: dict[str, Tensor]) -> tuple[GPT2, str]:
    """Return the model and the codec that keeps its vectors as they are."""
    config = described.gpt2
    tensors = {name: _as_stored(name, tensor) for name, tensor in tensors.items() if not LEFT_OUT.fullmatch(name)}
    if described.tied and "wte.weight" not in tensors and "lm_head.weight" in tensors:
        tensors["wte.weight"] = tensors.pop("lm_head.weight")  # of two names for one tensor, safetensors keeps one
    matrices, vectors = {}, {}
    for name, (out_features, in_features) in config.matrix_shapes().items():
        is_conv1d = name.startswith("h.")  # Conv1D keeps [in, out]
        shape = (in_features, out_features) if is_conv1d else (out_features, in_features)
        tensor = _take(tensors, f"{name}.weight", shape)
        matrix = tensor.T.contiguous() if is_conv1d else tensor
        matrices[name] = Dense.of(matrix, float_codec(tensor.dtype).name)
    codecs = set()
    for name, vector_shape in config.vector_shapes().items():
        vectors[name] = _take(tensors, name, vector_shape)
        codecs.add(float_codec(vectors[name].dtype).name)
    if "lm_head.weight" in tensors:
        head = _take(tensors, "lm_head.weight", (config.vocab_size, config.n_embd))
        if not torch.equal(head, matrices["wte"].matrix.parts()["values"]):
            matrices["lm_head"] = Dense.of(head, float_codec(head.dtype).name)
    elif not described.tied:
        raise CheckpointError(
            "model.safetensors: lm_head.weight is missing, though tie_word_embeddings is false in config.json"
        )
    if tensors:
        raise CheckpointError(f"model.safetensors: {min(tensors)} is not a tensor of a GPT-2")
    return GPT2(config, matrices, vectors), codecs.pop() if len(codecs) == 1 else "fp32"


def _as_stored(name: str, tensor: Tensor) -> Tensor:
    if tensor.dtype not in READ_DTYPES:
        legal = ", ".join(str(dtype).removeprefix("torch.") for dtype in READ_DTYPES)
        kind = str(tensor.dtype).removeprefix("torch.")
        raise CheckpointError(f"model.safetensors: {name} must be one of {legal}, not {kind}; convert it first")
    return tensor.float() if tensor.dtype == torch.float64 else tensor


def _take(tensors: dict[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    if name not in tensors:
        raise CheckpointError(f"model.safetensors: {name} is missing")
    tensor = tensors.pop(name)
    if tuple(tensor.shape) != shape:
        raise CheckpointError(f"model.safetensors: {name} must have shape {list(shape)}, not {list(tensor.shape)}")
    if not torch.isfinite(tensor).all():
        raise CheckpointError(f"model.safetensors: {name} must be finite and within the range of fp32")
    return tensor
