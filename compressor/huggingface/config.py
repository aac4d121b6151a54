"""config.json of a checkpoint in Hugging Face's layout."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.artifact.gpt2_config import GPT2Config
from compressor.errors import CheckpointError
from compressor.huggingface.files import read_json

CONFIG = "config.json"
DEFAULT_END_OF_TEXT = 50256  # where the file names none, as in transformers
# Other names for the same function; they differ in how they are computed, which is in the last bits.
ACTIVATION_NAMES = {
    "gelu_accurate": "gelu_new",
    "gelu_fast": "gelu_new",
    "gelu_python": "gelu",
    "gelu_python_tanh": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "swish": "silu",
}


@dataclass(frozen=True)
class CheckpointConfig:
    """What config.json says.

    Attributes:
        gpt2: the hyper-parameters.
        tied: whether the head is the token embedding.
        notes: what the user should know, a line each.
    """

    gpt2: GPT2Config
    tied: bool
    notes: tuple[str, ...]


def read_config(folder: Path) -> CheckpointConfig:
    """Return what config.json in `folder` says.

    Raises:
        CheckpointError: naming the key, its value and the legal range.
    """
    return checkpoint_config(read_json(folder / CONFIG), CONFIG)


def checkpoint_config(raw: dict[str, Any], file: str) -> CheckpointConfig:
    """Return what the keys of a config.json say, which stand in `file`; raises CheckpointError as `read_config`."""
    try:
        return _config(raw)
    except KeyError as error:
        raise CheckpointError(f"{file}: {error.args[0]} is missing") from error
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from error


def _config(raw: dict[str, Any]) -> CheckpointConfig:
    if (kind := raw.get("model_type")) != "gpt2":
        raise ValueError(f"model_type must be 'gpt2', not {kind!r}")
    for field, neutral in (("add_cross_attention", False), ("quantization_config", None)):
        if raw.get(field):
            raise ValueError(f"{field} must be {neutral}, not {raw[field]!r}")
    tied = raw.get("tie_word_embeddings", True)
    if type(tied) is not bool:
        raise ValueError(f"tie_word_embeddings must be true or false, not {tied!r}")
    end, notes = _end_of_text(raw)
    width: Any = raw["n_embd"]
    inner: Any = raw.get("n_inner")
    activation: Any = raw.get("activation_function", "gelu_new")
    inner = 4 * width if inner is None and type(width) is int else inner
    if type(activation) is str:
        activation = ACTIVATION_NAMES.get(activation, activation)
    config = GPT2Config(
        vocab_size=raw["vocab_size"],
        n_positions=raw.get("n_positions", 1024),
        n_embd=width,
        n_layer=raw["n_layer"],
        n_head=raw["n_head"],
        n_inner=inner,
        eos_token_id=end,
        layer_norm_epsilon=raw.get("layer_norm_epsilon", 1e-5),
        activation_function=activation,
        scale_attn_weights=raw.get("scale_attn_weights", True),
        scale_attn_by_inverse_layer_idx=raw.get("scale_attn_by_inverse_layer_idx", False),
    )
    return CheckpointConfig(config, tied, notes)


def _end_of_text(raw: dict[str, Any]) -> tuple[Any, tuple[str, ...]]:
    """Return the id of the token that ends a text, of several the first, and what the user should know of it."""
    value = raw.get("eos_token_id", DEFAULT_END_OF_TEXT)
    if "eos_token_id" not in raw and type(raw["vocab_size"]) is int and raw["vocab_size"] <= DEFAULT_END_OF_TEXT:
        raise KeyError("eos_token_id")
    if isinstance(value, list) and value:
        note = f"{CONFIG}: eos_token_id has {len(value)} tokens, of which only the first, {value[0]!r}, ends a text"
        return value[0], (note,) if len(value) > 1 else ()
    return value, ()
