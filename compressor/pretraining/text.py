"""Text to pre-train on: files to tokens, a tokenizer where none is given, and the order in which rows are seen."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor

from compressor.artifact.tokenizer import END_OF_TEXT, read_tokenizer
from compressor.huggingface import EMBEDDED, EMBEDDED_FOLDER
from compressor.pretraining.config import Config
from compressor.progress import Progress, silent
from compressor.runtime.evaluate import Text, read_text, read_utf8

PIECES = 64  # documents that are encoded at a time
SUFFIXES = (".txt", ".xz")
HELD_OUT = 0.01  # share of the text that is kept for the validation curve where no other text is given


@dataclass(frozen=True)
class Corpus:
    """What a run reads.

    Attributes:
        tokenizer: byte-level BPE.
        training: tokens [T], every document ended by token 0; 16 bits each where the vocabulary allows.
        validation: what the curve and the artefact's quality are measured on.
        sha256: of the training files.
    """

    tokenizer: Tokenizer
    training: Tensor
    validation: Text
    sha256: str


def read_corpus(
    config: Config,
    texts: Sequence[Path],
    validation: Path | None = None,
    *,
    tokenizer_json: str | None = None,
    progress: Progress = silent,
) -> Corpus:
    """Return the tokens of text files, plain or .xz; <|endoftext|> and ends of files separate documents.

    Args:
        config: says which tokenizer.
        texts: to train on, files or folders of .txt and .xz files.
        validation: to measure on; by default the end of the texts.
        tokenizer_json: the tokenizer of a run that resumes, so that none is trained again.
        progress: progress callback.

    Raises:
        ValueError: if a file cannot be read, is empty or too short, or the tokenizer does not match.
    """
    contents = [read_utf8(path) for path in files_of(texts)]
    if validation is not None:
        read_utf8(validation, "validation")  # fails now rather than after a tokenizer was trained
    documents = [part for content in contents for part in content.split(END_OF_TEXT) if part.strip()]
    if not documents:
        raise ValueError(f"text: {', '.join(map(str, texts)) or 'no file'}: there is nothing but white space")
    if config.tokenizer is not None:
        tokenizer = given_tokenizer(config)
    elif tokenizer_json is not None:
        tokenizer = read_tokenizer(tokenizer_json)
    else:
        tokenizer = trained_tokenizer(documents, config.model.vocab_size)
    dtype = torch.uint16 if config.model.vocab_size <= 1 << 16 else torch.int32
    ids = torch.cat([part.to(dtype) for part in _encoded(tokenizer, documents, progress)])
    _check_length(config, len(ids), held_out=validation is None)
    if validation is None:
        cut = len(ids) - max(int(HELD_OUT * len(ids)), config.model.n_positions + 1)
        ids, rest = ids[:cut], ids[cut:].long()
        data = tokenizer.decode(rest.tolist(), skip_special_tokens=False).encode()
        held_out = Text("end of the training text", hashlib.sha256(data).hexdigest(), len(data), rest.numpy())
    else:
        held_out = read_text(validation, tokenizer, "validation")
    digest = hashlib.sha256("".join(contents).encode()).hexdigest()
    return Corpus(tokenizer, ids, held_out, digest)


def _check_length(config: Config, tokens: int, *, held_out: bool) -> None:
    """Refuse a text that is too short to train on; raises ValueError with how many tokens are needed."""
    longest = max(phase.context for phase in config.phases)
    need = max(longest, config.batch_tokens) + 1
    if held_out:
        need = max(need + config.model.n_positions + 1, ceil(need / (1 - HELD_OUT)))
    if tokens < need:
        kept = ", some of which are kept for validation" if held_out else ""
        raise ValueError(
            f"text: has {tokens} tokens{kept}; at least {need} are needed for contexts of {longest} and "
            f"batch_tokens = {config.batch_tokens}"
        )


def files_of(texts: Sequence[Path]) -> list[Path]:
    """Return the files named, and those called *.txt or *.xz in the folders named, by name.

    Raises:
        ValueError: if a folder has none.
    """
    found: list[Path] = []
    for path in texts:
        files = sorted(file for file in path.glob("*") if file.suffix in SUFFIXES) if path.is_dir() else [path]
        if not files:
            raise ValueError(f"text: there is no .txt or .xz file in {path}")
        found += files
    return found


def rows_of_step(config: Config, count: int, step: int) -> tuple[Tensor, int]:
    """Return where the rows of a step begin [batch], and their context, in a text of `count` tokens.

    Rows do not overlap. Every epoch of a phase is shuffled anew, by the seed, the phase and the epoch alone.
    """
    k = config.phase(step)
    context = config.phases[k].context
    first = ceil(config.phases[k - 1].until * config.steps) if k else 0
    rows = (count - 1) // context
    batch = config.batch_tokens // context
    epoch, place = divmod(step - first, rows // batch)
    random = torch.Generator().manual_seed(config.seed * 1_000_003 + k * 10_007 + epoch)
    chosen = torch.randperm(rows, generator=random)[place * batch : (place + 1) * batch]
    return chosen * context, context


def batch_of_step(config: Config, ids: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Return the inputs [B, T] and the tokens that follow each of them [B, T]."""
    starts, context = rows_of_step(config, len(ids), step)
    rows = torch.stack([ids[start : start + context + 1].long() for start in starts.tolist()])  # [B, T + 1]
    return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def trained_tokenizer(documents: Sequence[str], vocab_size: int) -> Tokenizer:
    """Return a byte-level BPE with exactly `vocab_size` tokens, of which token 0 ends a text.

    Raises:
        ValueError: if the text has too few different pairs for so many tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    if (size := tokenizer.get_vocab_size()) != vocab_size:
        raise ValueError(f"model.vocab_size: a tokenizer of this text has {size} tokens, not {vocab_size}")
    return tokenizer


def given_tokenizer(config: Config) -> Tokenizer:
    """Return the tokenizer that the config names.

    Raises:
        ValueError: if there is none, or its vocabulary is another than the model's.
    """
    if config.tokenizer is None:
        raise ValueError("tokenizer must be given")
    wanted = config.model.vocab_size
    path = EMBEDDED_FOLDER / "tokenizer.json" if config.tokenizer == EMBEDDED else Path(config.tokenizer)
    if not path.is_file():
        raise ValueError(f"tokenizer: there is no file {path}")
    try:
        tokenizer = read_tokenizer(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"tokenizer: {path} {error}") from error
    if (size := tokenizer.get_vocab_size()) != wanted:
        raise ValueError(f"tokenizer: {path} has {size} tokens, but model.vocab_size is {wanted}")
    if 0 not in (added := tokenizer.get_added_tokens_decoder()) or not added[0].special:
        raise ValueError(f"tokenizer: token 0 of {path} must be a special token, since it ends a text")
    return tokenizer


def _encoded(tokenizer: Tokenizer, documents: Sequence[str], progress: Progress) -> Iterator[Tensor]:
    starts = range(0, len(documents), PIECES)
    for start in progress(starts, label="Reading", total=len(starts)):
        for encoding in tokenizer.encode_batch_fast(documents[start : start + PIECES], add_special_tokens=False):
            yield torch.tensor([*encoding.ids, 0])
