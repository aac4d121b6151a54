"""The tensors of a checkpoint under GPT-2's own names: of safetensors, or of PyTorch's files through transformers.

safetensors are read directly, each tensor once into memory of its own. A file of PyTorch's is a pickle: it is opened
for tensors alone, and whatever else it would run is refused.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from compressor.errors import CheckpointError
from compressor.huggingface.files import check_readable, read_json
from compressor.tensors import read

SAFETENSORS, PICKLE = "model.safetensors", "pytorch_model.bin"
PATTERNS = {SAFETENSORS: "model*.safetensors*", PICKLE: "pytorch_model*.bin*"}  # with the index of several files
WRAPPERS = {"module", "_orig_mod"}  # parts of names: DataParallel and torch.compile, in any order and place
# What transformers' classes and trl have beside the language model.
HEADS = re.compile(r"(score|classifier|qa_outputs|multiple_choice_head\.summary|v_head\.summary)\.(weight|bias)")


@dataclass(frozen=True)
class Weights:
    """The tensors of a checkpoint.

    Attributes:
        file: what its errors are about.
        tensors: by GPT-2's names, without the prefixes of wrappers and of `transformer.`.
        sha256: of the file; of several, by name.
    """

    file: str
    tensors: dict[str, Tensor]
    sha256: str | dict[str, str]

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out, a line."""
        heads = ", ".join(sorted(name for name in self.tensors if HEADS.fullmatch(name)))
        return (f"{self.file}: left out {heads}, which the language model does not use",) if heads else ()


def read_weights(folder: Path) -> Weights:
    """Return the weights in `folder`: safetensors where there are any, in one file or in several.

    Raises:
        CheckpointError: naming the file that is missing, damaged, or holds more than tensors.
    """
    for name, load in LOADERS.items():
        whole, index = folder / name, folder / f"{name}.index.json"
        if whole.is_file() or index.is_file():
            files = [whole] if whole.is_file() else _shards(index)
            return _joined(name, files, load)
    raise CheckpointError(
        f"{SAFETENSORS}: is missing in {folder}, and so is {PICKLE}; a GGUF file is given by its own path"
    )


def _joined(name: str, files: list[Path], load: Callable[[Path], tuple[dict[str, Tensor], str]]) -> Weights:
    tensors: dict[str, Tensor] = {}
    checksums = {}
    for file in files:
        check_readable(file)
        loaded, checksums[file.name] = load(file)
        for original, tensor in loaded.items():
            if (own := own_name(original)) in tensors:
                raise CheckpointError(f"{file.name}: {own} is there twice")
            tensors[own] = tensor
    return Weights(name, tensors, checksums.get(name, checksums))


def own_name(name: str) -> str:
    """Return a tensor's name without what torch.compile, DDP and transformers' classes put before it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS).removeprefix("transformer.")


def _shards(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(type(v) is str for v in weight_map.values()):
        raise CheckpointError(f"{index.name}: weight_map must be an object that names the file of every tensor")
    files = [index.parent / Path(name).name for name in sorted(set(weight_map.values()))]
    if missing := [file.name for file in files if not file.exists()]:
        raise CheckpointError(f"{missing[0]}: is missing in {index.parent}, though {index.name} names it")
    return files


def _load_safetensors(file: Path) -> tuple[dict[str, Tensor], str]:
    try:
        return read(file)
    except OSError as error:
        raise CheckpointError(f"{file.name}: cannot be read in {file.parent}: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{file.name}: is not a safetensors file: {error}") from error


def _load_pickle(file: Path) -> tuple[dict[str, Tensor], str]:
    from transformers.modeling_utils import load_state_dict  # takes seconds, which safetensors need not wait for

    try:
        loaded = load_state_dict(file, weights_only=True)
    except Exception as error:  # whatever unpickling runs into
        kind = type(error).__name__
        raise CheckpointError(
            f"{file.name}: is damaged, or holds more than tensors, of which nothing was run ({kind})"
        ) from error
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{file.name}: must be a dict of tensors, not {type(loaded).__name__}")
    size = file.stat().st_size
    for name, tensor in loaded.items():
        if type(name) is not str or not isinstance(tensor, Tensor):
            raise CheckpointError(f"{file.name}: {name!r} must be a tensor, not {type(tensor).__name__}")
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.nbytes > size:
            raise CheckpointError(f"{file.name}: {name} must be a dense tensor, no larger than its file")
    with file.open("rb") as opened:
        sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
    return {name: tensor.detach().clone().contiguous() for name, tensor in loaded.items()}, sha256


LOADERS: dict[str, Callable[[Path], tuple[dict[str, Tensor], str]]] = {
    SAFETENSORS: _load_safetensors,
    PICKLE: _load_pickle,
}
