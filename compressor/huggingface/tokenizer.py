"""The tokenizer of a checkpoint: tokenizer.json, or what transformers makes of a slow tokenizer's files."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from compressor.artifact.gpt2_config import GPT2Config
from compressor.artifact.tokenizer import END_OF_TEXT, check_size, end_of_text, read_tokenizer
from compressor.errors import CheckpointError
from compressor.huggingface.files import check_readable, read_bytes, read_json

TOKENIZER, VOCAB, MERGES = "tokenizer.json", "vocab.json", "merges.txt"
ADDED, SPECIAL, SETTINGS = "added_tokens.json", "special_tokens_map.json", "tokenizer_config.json"
FILES = [TOKENIZER, VOCAB, MERGES, ADDED, SPECIAL, SETTINGS]
NAMES = ("bos_token", "eos_token", "unk_token")  # <|endoftext|> to transformers where no file names them


def read_checkpoint_tokenizer(folder: Path, config: GPT2Config) -> bytes:
    """Return a tokenizer.json in which the model's own end of text is a special token.

    Without that file it is made of vocab.json and merges.txt, and of added_tokens.json, special_tokens_map.json and
    tokenizer_config.json where they are.

    Raises:
        CheckpointError: if there is none, or its tokens are not the model's.
    """
    whole = folder / TOKENIZER
    if whole.is_file():
        return checked_tokenizer(read_bytes(whole), TOKENIZER, config)
    if (folder / VOCAB).is_file():
        return checked_tokenizer(_made_of_vocab(folder), VOCAB, config)
    raise CheckpointError(f"{TOKENIZER}: is missing in {folder}, and so are {VOCAB} and {MERGES}")


def checked_tokenizer(data: bytes, file: str, config: GPT2Config) -> bytes:
    """Return a tokenizer.json that cuts nothing, adds nothing and ends a text as the model does, unchanged if it can.

    Raises:
        CheckpointError: naming `file`, if its tokens are not the model's.
    """
    try:
        tokenizer = read_tokenizer(data)
        check_size(tokenizer, config.vocab_size)
        _name_end_of_text(tokenizer, config.eos_token_id)
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from error
    cleaned = tokenizer.to_str(pretty=True).encode()
    return data if Tokenizer.from_str(data.decode()).to_str(pretty=True).encode() == cleaned else cleaned


def _name_end_of_text(tokenizer: Tokenizer, token_id: int) -> None:
    """Make the token that ends a text a special one, unless it is an ordinary piece of text such as a line end."""
    name = end_of_text(tokenizer, token_id)
    known = tokenizer.get_added_tokens_decoder().get(token_id)
    text = tokenizer.decode([token_id], skip_special_tokens=False)
    is_fine = known.special if known else tokenizer.encode(text, add_special_tokens=False).ids == [token_id]
    if not is_fine:
        tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False)])


def _made_of_vocab(folder: Path) -> bytes:
    """Return the tokenizer.json that transformers makes of a slow tokenizer, of the tokens that its files name."""
    from transformers import GPT2Tokenizer  # takes seconds, which a tokenizer.json need not wait for

    settings = read_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
    special = read_json(folder / SPECIAL) if (folder / SPECIAL).is_file() else {}
    ids = _ids(folder, settings)
    check_readable(folder / MERGES)
    named = dict.fromkeys(NAMES, END_OF_TEXT) | {key: _content(value) for key, value in (settings | special).items()}
    given: dict[str, Any] = {
        key: named[key] if named[key] in ids else None for key in NAMES
    }  # None, or it would be added
    try:
        made = GPT2Tokenizer.from_pretrained(folder, local_files_only=True, **given)
        raw = json.loads(made.backend_tokenizer.to_str())
    except Exception as error:  # tokenizers raises bare Exception
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{VOCAB}: is not a byte-level BPE with {MERGES}: {reason}") from error
    for token, token_id in ids.items():
        if (given_id := made.backend_tokenizer.token_to_id(token)) != token_id:
            raise CheckpointError(f"{ADDED}: {token!r} must be token {given_id}, the next one, not {token_id}")
    raw["added_tokens"] = [token for token in raw["added_tokens"] if token["content"] in ids]
    return json.dumps(raw).encode()


def _ids(folder: Path, settings: dict[str, Any]) -> dict[str, int]:
    """Return the id of every token that the files name."""
    vocab = read_json(folder / VOCAB)
    if wrong := [token for token, token_id in vocab.items() if type(token_id) is not int or token_id < 0]:
        raise CheckpointError(f"{VOCAB}: {wrong[0]!r} must have an id of at least 0, not {vocab[wrong[0]]!r}")
    if len(set(vocab.values())) < len(vocab):
        raise CheckpointError(f"{VOCAB}: two tokens have the same id")
    added = read_json(folder / ADDED) if (folder / ADDED).is_file() else {}
    if wrong := [token for token, token_id in added.items() if type(token_id) is not int]:
        raise CheckpointError(f"{ADDED}: {wrong[0]!r} must have an integer for its id, not {added[wrong[0]]!r}")
    try:
        described = (settings.get("added_tokens_decoder") or {}).items()
        return vocab | added | {token["content"]: int(key) for key, token in described}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{SETTINGS}: added_tokens_decoder must describe a token per id: {error}") from error


def _content(value: object) -> object:
    """Return the text of a special token, which is written as it is or as an object that describes it."""
    return value.get("content") if isinstance(value, dict) else value
