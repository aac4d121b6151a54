"""The tokenizer of a checkpoint: tokenizer.json, or what older checkpoints have in its place."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from compressor.errors import CheckpointError
from compressor.huggingface.files import read_bytes, read_json
from compressor.runtime.tokenizer import END_OF_TEXT, check_size, end_of_text, read_tokenizer

TOKENIZER, VOCAB, MERGES = "tokenizer.json", "vocab.json", "merges.txt"
ADDED, SPECIAL, SETTINGS = "added_tokens.json", "special_tokens_map.json", "tokenizer_config.json"
FILES = [TOKENIZER, VOCAB, MERGES, ADDED, SPECIAL, SETTINGS]


def read_checkpoint_tokenizer(folder: Path, vocab_size: int, eos_token_id: int) -> bytes:
    """Return a tokenizer.json in which the model's own end of text is a special token.

    Without that file it is made of vocab.json and merges.txt, and of added_tokens.json, special_tokens_map.json and
    tokenizer_config.json where they are.

    Raises:
        CheckpointError: if there is none, or its tokens are not the model's.
    """
    whole = folder / TOKENIZER
    is_whole = whole.is_file() or not (folder / VOCAB).is_file()
    file = TOKENIZER if is_whole else VOCAB
    if is_whole and not whole.is_file():
        raise CheckpointError(f"{TOKENIZER}: is missing in {folder}, and so are {VOCAB} and {MERGES}")
    data = read_bytes(whole) if is_whole else b""
    try:
        tokenizer = read_tokenizer(data) if is_whole else _made_of_vocab(folder)
        check_size(tokenizer, vocab_size)
        _name_end_of_text(tokenizer, eos_token_id)
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from error
    cleaned = tokenizer.to_str(pretty=True).encode()
    is_unchanged = is_whole and Tokenizer.from_str(data.decode()).to_str(pretty=True).encode() == cleaned
    return data if is_unchanged else cleaned


def _name_end_of_text(tokenizer: Tokenizer, token_id: int) -> None:
    """Make the token that ends a text a special one, unless it is an ordinary piece of text such as a line end."""
    name = end_of_text(tokenizer, token_id)
    known = tokenizer.get_added_tokens_decoder().get(token_id)
    text = tokenizer.decode([token_id], skip_special_tokens=False)
    is_fine = known.special if known else tokenizer.encode(text, add_special_tokens=False).ids == [token_id]
    if not is_fine:
        tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False)])


def _made_of_vocab(folder: Path) -> Tokenizer:
    vocab, merges = read_json(folder / VOCAB), _merges(read_bytes(folder / MERGES))
    if wrong := [token for token, token_id in vocab.items() if type(token_id) is not int or token_id < 0]:
        raise ValueError(f"{wrong[0]!r} must have an id of at least 0, not {vocab[wrong[0]]!r}")
    if len(set(vocab.values())) < len(vocab):
        raise ValueError("two tokens have the same id")
    settings = read_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
    try:
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    except Exception as error:  # tokenizers raises bare Exception
        raise ValueError(f"is not a byte-level BPE with {MERGES}: {error}") from error
    prefix = settings.get("add_prefix_space") is True
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    special = set(_special_names(folder, settings))
    for token_id, token in sorted(_added(folder, settings, special).items()):
        tokenizer.add_tokens([token])
        if (given := tokenizer.token_to_id(token.content)) != token_id:
            raise CheckpointError(f"{ADDED}: {token.content!r} must be token {given}, the next one, not {token_id}")
    named = [name for name in sorted(special) if tokenizer.token_to_id(name) is not None]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in named])
    return tokenizer


def _merges(data: bytes) -> list[tuple[str, str]]:
    pairs = []
    try:
        lines = data.decode().split("\n")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{MERGES}: is not UTF-8 (byte {error.start})") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        left, space, right = line.rstrip("\r").partition(" ")
        if not (left and space and right) or " " in right:
            raise CheckpointError(f"{MERGES}: line {number} must be two pieces with a space between, not {line!r}")
        pairs.append((left, right))
    return pairs


def _added(folder: Path, settings: dict[str, Any], special: set[str]) -> dict[int, AddedToken]:
    """Return the tokens beside the vocabulary by id, as transformers reads them."""
    found: dict[int, AddedToken] = {}
    plain = read_json(folder / ADDED) if (folder / ADDED).is_file() else {}
    for content, token_id in plain.items():
        if type(token_id) is not int:
            raise CheckpointError(f"{ADDED}: {content!r} must have an integer for its id, not {token_id!r}")
        is_special = content in special
        found[token_id] = AddedToken(content, special=is_special, normalized=not is_special)
    described = settings.get("added_tokens_decoder") or {}
    try:
        for key, token in described.items():
            options = {name: token[name] for name in ("single_word", "lstrip", "rstrip", "normalized", "special")}
            found[int(key)] = AddedToken(token["content"], **options)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{SETTINGS}: added_tokens_decoder must describe a token per id: {error}") from error
    return found


def _special_names(folder: Path, settings: dict[str, Any]) -> Iterator[str]:
    """Yield what the files call special; without any of them what GPT-2's own tokenizer does."""
    named = read_json(folder / SPECIAL) if (folder / SPECIAL).is_file() else {}
    named = {key: value for key, value in settings.items() if key.endswith("_token")} | named
    more = named.get("additional_special_tokens")
    for value in [*named.values(), *(more if isinstance(more, list) else [])] or [END_OF_TEXT]:
        content = value.get("content") if isinstance(value, dict) else value
        if isinstance(content, str):
            yield content
