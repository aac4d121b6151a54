"""Our decoder as a GGUF file that llama.cpp reads; the names are those of its architecture `gpt2`."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from compressor.gpt2 import GPT2

MATRICES = {
    "wte": "token_embd",
    "wpe": "position_embd",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
NORMS = {"ln_1": "attn_norm", "ln_2": "ffn_norm", "ln_f": "output_norm"}


def export(model: GPT2, tokenizer: dict[str, Any], out: Path, kind: str) -> None:
    """Write `model` with every matrix but the table of positions in one type, the tied head included.

    Args:
        model: the dense model.
        tokenizer: a byte-level BPE as in tokenizer.json.
        out: the file.
        kind: one of ggml's block types: "Q8_0" or "Q4_0".
    """
    quantised = gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(out, "gpt2")
    _add_shape(writer, model, kind)
    _add_tokenizer(writer, tokenizer, model.config.eos_token_id)
    for name, form in model.matrices().items():
        weight = form.dense().numpy()  # [out, in]
        dtype = gguf.GGMLQuantizationType.F32 if name == "wpe" else quantised
        writer.add_tensor(f"{_renamed(name)}.weight", gguf.quants.quantize(weight, dtype), raw_dtype=dtype)
    for name, vector in model.vectors().items():
        module, _, part = name.rpartition(".")
        writer.add_tensor(f"{_renamed(module)}.{part}", vector.decode().numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_shape(writer: gguf.GGUFWriter, model: GPT2, kind: str) -> None:
    c = model.config
    writer.add_name("random GPT-2")
    writer.add_context_length(c.n_positions)
    writer.add_embedding_length(c.n_embd)
    writer.add_feed_forward_length(c.n_inner)
    writer.add_block_count(c.n_layer)
    writer.add_head_count(c.n_head)
    writer.add_layer_norm_eps(c.layer_norm_epsilon)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind}"])


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: dict[str, Any], eos: int) -> None:
    vocabulary = sorted(tokenizer["model"]["vocab"].items(), key=lambda item: item[1])
    kinds = [gguf.TokenType.CONTROL if i == eos else gguf.TokenType.NORMAL for _, i in vocabulary]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(eos)
    writer.add_eos_token_id(eos)


def _renamed(name: str) -> str:
    """Return llama.cpp's name of a matrix or LayerNorm."""
    names = MATRICES | NORMS
    if not name.startswith("h."):
        return names[name]
    _, layer, rest = name.split(".", 2)
    return f"blk.{layer}.{names[rest]}"
