"""Read any checkpoint of a GPT-2 that transformers reads, write dense ones back, and make artefacts its models.

safetensors are read directly, with as little memory as time; everything else comes through transformers, which is
imported for that alone. No pickle and no code of a checkpoint is run. Once this is imported, AutoModelForCausalLM and
its like open an artefact.
"""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import huggingface_hub
import torch
from safetensors.torch import save_file
from torch import Tensor

from compressor.artifact.manifest import Source
from compressor.artifact.tokenizer import end_of_text, read_tokenizer, tokenizer_config
from compressor.codecs import float_codec
from compressor.errors import CheckpointError
from compressor.formats import Dense
from compressor.gpt2 import GPT2, encoded
from compressor.huggingface import registration
from compressor.huggingface import tokenizer as checkpoint_tokenizer
from compressor.huggingface.config import CheckpointConfig, read_config
from compressor.huggingface.gguf import SUFFIX as GGUF
from compressor.huggingface.gguf import find_gguf, read_gguf
from compressor.huggingface.tokenizer import checked_tokenizer, read_checkpoint_tokenizer
from compressor.huggingface.weights import HEADS, PATTERNS, Weights, read_weights
from compressor.runtime import reference
from compressor.storage import durable

EMBEDDED, EMBEDDED_FOLDER = reference.NAME, reference.FOLDER
DESCRIPTIONS = ["config.json", *checkpoint_tokenizer.FILES]
# Every dtype that is read, and the one that it is kept in.
READ_DTYPES = {
    torch.float32: torch.float32,
    torch.float16: torch.float16,
    torch.bfloat16: torch.bfloat16,
    torch.float64: torch.float32,
    torch.float8_e4m3fn: torch.float16,  # which has every value of it
    torch.float8_e5m2: torch.float16,
}
# Beside the heads, names that older checkpoints carry and that hold nothing: causal masks.
LEFT_OUT = re.compile(rf"h\.\d+\.attn\.(bias|masked_bias)|{HEADS.pattern}")

registration.register()


@dataclass(frozen=True)
class Checkpoint:
    """A dense model as it was found.

    Attributes:
        model: matrices in the checkpoint's own dtypes.
        tokenizer_json: a tokenizer that cuts nothing and adds nothing.
        source: the checkpoint.
        notes: what the user should know, a line each.
    """

    model: GPT2
    tokenizer_json: bytes
    source: Source
    notes: tuple[str, ...] = ()

    @cached_property
    def dense(self) -> GPT2:
        """The model as torch runs it."""
        return self.model.expanded()

    @property
    def end_of_text(self) -> str:
        """What the tokenizer calls the token that ends a text."""
        return end_of_text(read_tokenizer(self.tokenizer_json), self.model.config.eos_token_id)


def load(model: str) -> Checkpoint:
    """Return the checkpoint called `model`: "gpt2-mini" (embedded), a folder, a GGUF file, or a hub id.

    Raises:
        CheckpointError: if there is none, or it is not a GPT-2 that can be read.
    """
    path = _locate(model)
    if gguf := find_gguf(path):
        described, tokenizer_json, weights = read_gguf(gguf)
        tokenizer_json = checked_tokenizer(tokenizer_json, gguf.name, described.gpt2)
    else:
        described = read_config(path)
        tokenizer_json = read_checkpoint_tokenizer(path, described.gpt2)
        weights = read_weights(path)
    decoder = _build(described, weights)
    name = EMBEDDED if model == EMBEDDED else model.rstrip("/")
    name = Path(name).resolve().name if Path(name).exists() else name
    source = Source(id=name, sha256=weights.sha256)
    return Checkpoint(decoder, tokenizer_json, source, described.notes + weights.notes)


def export(model: GPT2, tokenizer_json: bytes, folder: Path) -> None:
    """Write `model`, decoded to dense fp32, as a checkpoint that `transformers` loads; all of it or nothing.

    Raises:
        CheckpointError: if `folder` exists.
    """
    refuse_existing(folder)
    tensors = {f"transformer.{name}": vector.decode().contiguous() for name, vector in model.vectors().items()}
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
    """Return the folder or the GGUF file that is called `model`."""
    if model == EMBEDDED:
        return EMBEDDED_FOLDER
    if Path(model).is_dir() or (model.endswith(GGUF) and Path(model).exists()):
        return Path(model)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model) or model.startswith("."):
        raise CheckpointError(
            f"model: there is no folder {model!r}; give {EMBEDDED!r}, a folder, a {GGUF} file or a hub id"
        )
    try:
        return _downloaded(model)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"model: {model!r} is neither {EMBEDDED!r} nor a folder, and the hub did not give it ({reason})"
        ) from error


def _downloaded(model: str) -> Path:
    """Return the folder of a checkpoint of the hub: its safetensors, or, without any, the first kind that it has."""
    for pattern in (*PATTERNS.values(), f"*{GGUF}"):
        folder = Path(huggingface_hub.snapshot_download(model, allow_patterns=[*DESCRIPTIONS, pattern]))
        if any(folder.glob(pattern)):
            break
    return folder


def _build(described: CheckpointConfig, weights: Weights) -> GPT2:
    """Return the model, its vectors as they are or, where their dtypes differ, in fp32."""
    config, tensors = described.gpt2, _Tensors(weights)
    if described.tied and "wte.weight" not in tensors and "lm_head.weight" in tensors:
        tensors["wte.weight"] = tensors.pop("lm_head.weight")  # of two names for one tensor, safetensors keeps one
    matrices, vectors = {}, {}
    for name, (out_features, in_features) in config.matrix_shapes().items():
        is_conv1d = name.startswith("h.")  # Conv1D keeps [in, out]
        shape = (in_features, out_features) if is_conv1d else (out_features, in_features)
        tensor = tensors.take(f"{name}.weight", shape)
        matrix = tensor.T.contiguous() if is_conv1d else tensor
        matrices[name] = Dense.of(matrix, float_codec(tensor.dtype).name)
    for name, vector_shape in config.vector_shapes().items():
        vectors[name] = tensors.take(name, vector_shape)
    if "lm_head.weight" in tensors:
        head = tensors.take("lm_head.weight", (config.vocab_size, config.n_embd))
        if not torch.equal(head, matrices["wte"].matrix.parts()["values"]):
            matrices["lm_head"] = Dense.of(head, float_codec(head.dtype).name)
    elif not described.tied:
        raise CheckpointError(
            f"{tensors.file}: lm_head.weight is missing, though tie_word_embeddings is false in config.json"
        )
    if tensors:
        raise CheckpointError(f"{tensors.file}: {min(tensors)} is not a tensor of a GPT-2")
    dtypes = {vector.dtype for vector in vectors.values()}
    codec = float_codec(dtypes.pop() if len(dtypes) == 1 else torch.float32)
    return GPT2(config, matrices, encoded(vectors, codec.name))


class _Tensors(dict[str, Tensor]):
    """Tensors to be taken one by one, each checked, in the dtype that it is kept in."""

    def __init__(self, weights: Weights) -> None:
        self.file = weights.file
        super().__init__({n: self._as_kept(n, t) for n, t in weights.tensors.items() if not LEFT_OUT.fullmatch(n)})

    def _as_kept(self, name: str, tensor: Tensor) -> Tensor:
        if tensor.dtype not in READ_DTYPES:
            legal = ", ".join(str(dtype).removeprefix("torch.") for dtype in READ_DTYPES)
            kind = str(tensor.dtype).removeprefix("torch.")
            raise CheckpointError(f"{self.file}: {name} must be one of {legal}, not {kind}; convert it first")
        return tensor.to(READ_DTYPES[tensor.dtype])

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if name not in self:
            raise CheckpointError(f"{self.file}: {name} is missing")
        tensor = self.pop(name)
        if tuple(tensor.shape) != shape:
            raise CheckpointError(f"{self.file}: {name} must have shape {list(shape)}, not {list(tensor.shape)}")
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{self.file}: {name} must be finite and within the range of fp32")
        return tensor
