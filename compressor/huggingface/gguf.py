"""A GGUF file, llama.cpp's, through transformers: the shape, the tokenizer and the tensors, decoded to fp32."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from compressor.errors import CheckpointError
from compressor.huggingface.config import CheckpointConfig, checkpoint_config
from compressor.huggingface.files import check_readable
from compressor.huggingface.weights import Weights, own_name

SUFFIX = ".gguf"
LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def find_gguf(path: Path) -> Path | None:
    """Return `path` if it is a GGUF file, or the one in a folder that has no config.json; None if there is none.

    Raises:
        CheckpointError: if there are several.
    """
    if path.suffix == SUFFIX and not path.is_dir():
        return path
    files = [] if (path / "config.json").exists() else sorted(path.glob(f"*{SUFFIX}"))
    if len(files) > 1:
        raise CheckpointError(f"model: {path} has {len(files)} GGUF files; give one of them, such as {files[0].name}")
    return files[0] if files else None


def read_gguf(file: Path) -> tuple[CheckpointConfig, bytes, Weights]:
    """Return what a GGUF file says of the shape, its tokenizer.json, and the tensors in fp32.

    Raises:
        CheckpointError: if the package gguf is missing, or the file is damaged or not a GPT-2's.
    """
    check_readable(file)
    if find_spec("gguf") is None:
        raise CheckpointError(f"{file.name}: is read with the package gguf; pip install 'ttgpt[gguf]'")
    with redirect_stderr(StringIO()), _named(file):  # progress bars: ours are drawn by whoever runs this
        described = checkpoint_config(_raw_config(file), file.name)
        tokenizer_json = _tokenizer_json(file)
        tensors = _tensors(file, described)
    with file.open("rb") as opened:
        sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
    return described, tokenizer_json, Weights(file.name, tensors, sha256)


def _raw_config(file: Path) -> dict[str, Any]:
    from transformers import AutoConfig

    raw: dict[str, Any] = AutoConfig.from_pretrained(file.parent, gguf_file=file.name, **LOCAL).to_dict()
    # transformers keeps these two under llama.cpp's names, where its own model does not look for them.
    return raw | {"n_positions": raw.get("n_ctx"), "n_inner": raw.get("feed_forward_length")}


def _tokenizer_json(file: Path) -> bytes:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, **LOCAL)
    text: str = tokenizer.backend_tokenizer.to_str(pretty=True)
    return text.encode()


def _tensors(file: Path, described: CheckpointConfig) -> dict[str, torch.Tensor]:
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    with torch.device("meta"):  # names alone
        peer = GPT2LMHeadModel(GPT2Config(n_layer=described.gpt2.n_layer, n_embd=described.gpt2.n_embd, n_head=1))
    found = load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=peer, torch_dtype=torch.float32)
    return {own_name(name): tensor for name, tensor in found["tensors"].items()}


@contextmanager
def _named(file: Path) -> Iterator[None]:
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # a reader's that trusts its file: whatever damage leads to
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(f"{file.name}: is damaged, or no GGUF file of a GPT-2: {reason}") from error
