"""tokenizer_config.json: with it, `transformers` takes a folder's tokenizer.json as it is, and guesses nothing."""

import json
from typing import Any

from tokenizers import Tokenizer

from compressor.gpt2 import GPT2Config


def tokenizer_config(tokenizer: Tokenizer, config: GPT2Config) -> bytes:
    """Return the file's text. Its end of text is the model's own; as in GPT-2, it also begins a text."""
    values: dict[str, Any] = {
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.n_positions,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    end_of_text = tokenizer.id_to_token(config.eos_token_id)
    if end_of_text is not None:
        values |= dict.fromkeys(("bos_token", "eos_token", "unk_token"), end_of_text)
    return (json.dumps(values, indent=2, sort_keys=True) + "\n").encode()
