"""Editing the vocabulary token by token: one row is factorised, all others keep their bytes.

TensorGPT's argument for a tensor train per token: no core is shared, so a token can be given another vector, or
a new one can join, without touching the rest. The same holds for every format that keeps its rows apart.

Reference: TensorGPT, arXiv 2307.00526, section 3.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf, prod
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load
from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from torch import Tensor

from compressor import stored
from compressor.artifact import folder as artifact
from compressor.artifact.folder import Artifact
from compressor.artifact.manifest import Manifest
from compressor.artifact.tokenizer import read_tokenizer
from compressor.codecs import Coded
from compressor.errors import ArtifactError
from compressor.formats import Format
from compressor.gpt2 import GPT2
from compressor.methods.base import one_thread
from compressor.methods.tensorgpt import tt_svd
from compressor.runtime.evaluate import golden

TABLES = {"wte", "lm_head"}
MAX_TOKEN_BYTES = 256  # an added token bounds how many tokens a server must expect in a text
# A row that dwarfs the others makes logits so large that fp32 rounds them by more than the golden values tolerate.
MAX_NORM_RATIO = 100
MAX_VECTOR_BYTES = 2**24
MAX_ERROR = 1.0  # of a stored vector, relative to its norm: that of zeros
FINER = ("int4", "int8", "fp16")  # codecs that are proposed where a vector is stored worse than that


@dataclass(frozen=True)
class Edited:
    """An edit that is done.

    Attributes:
        token_id: of the token, which is also its row in the table.
        error: how far the stored row is from the wanted vector, relative to the vector's norm; of an untied head
            and the embedding, the larger.
        manifest: of the artefact as it is now.
    """

    token_id: int
    error: float
    manifest: Manifest


@dataclass(frozen=True, kw_only=True)
class _Pattern:
    """What a row is made after: a vector, or the mean row of some tokens in the same table."""

    described: str
    vector: Tensor | None = None  # [D]
    ids: tuple[int, ...] = ()

    def row_in(self, table: Format) -> Tensor:
        """Return the wanted row [D], fp64."""
        if self.vector is None:
            return table.rows(torch.tensor(self.ids)).double().mean(0)
        return self.vector.double()


def set_token(folder: Path, token: str, *, like: str | None = None, vector: Path | None = None) -> Edited:
    """Replace the embedding of an existing token, in the artefact itself.

    Args:
        folder: the artefact.
        token: text that is exactly one token.
        like: text whose tokens' mean vector is taken; of a single token, the row is copied as it is stored.
        vector: a safetensors file with one tensor "vector" [D], or a JSON list of D numbers.

    Raises:
        ValueError: if an argument is illegal, or the table's rows share values. The artefact is then as it was.
        ArtifactError: if the artefact is damaged.
    """
    _check_token(token)
    loaded = stored.read(folder)
    pattern = _pattern(loaded, like, vector)
    ids = _encode(loaded, token)
    if len(ids) != 1 or loaded.tokenizer.decode(ids, skip_special_tokens=False) != token:
        raise ValueError(f"token: {token!r} is not one token but {len(ids)}; ttgpt vocab add makes it one")
    return _edit(folder, loaded, loaded.tokenizer_json, f"set {_quoted(token)} ({ids[0]})", ids[0], pattern)


def add_token(folder: Path, token: str, *, like: str | None = None, vector: Path | None = None) -> Edited:
    """Add a token to the tokenizer and its embedding to the table, in the artefact itself.

    The token takes the next id. Where the table has more rows than the tokenizer has tokens, that row exists and is
    replaced; else one is appended and the vocabulary grows.

    Args:
        folder: the artefact.
        token: text that is not one token yet.
        like: as for `set_token`; may be the new token's own text, which is then cut as it was before.
        vector: as for `set_token`.

    Raises:
        ValueError: if an argument is illegal, or the table's rows share values. The artefact is then as it was.
        ArtifactError: if the artefact is damaged.
    """
    _check_token(token)
    loaded = stored.read(folder)
    pattern = _pattern(loaded, like, vector)
    token_id = _add(loaded, token)
    tokenizer_json = loaded.tokenizer.to_str(pretty=True).encode()
    return _edit(folder, loaded, tokenizer_json, f"add {_quoted(token)} ({token_id})", token_id, pattern)


def with_row(table: Format, row: int, vector: Tensor) -> Format:
    """Return `table` with `vector` [D] in place of a row, or behind the last one; all else is bitwise the same.

    Raises:
        ValueError: if the table's rows share values, or its codec cannot hold the vector's.
    """
    return table.replace_row(row, lambda form: _encoded(form, _cut(form, vector)))


@one_thread()
def _edit(
    folder: Path, loaded: Artifact[Format], tokenizer_json: bytes, edit: str, row: int, pattern: _Pattern
) -> Edited:
    """Make `row` of every table after `pattern` and write the artefact anew."""
    edited, errors = {}, []
    matrices = loaded.matrices
    for name in sorted(TABLES & matrices.keys()):
        try:
            edited[name] = _edit_table(matrices[name], row, pattern)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        wanted = pattern.row_in(matrices[name])
        errors.append(_error(edited[name], row, wanted))
        if errors[-1] > MAX_ERROR * (1 + 1e-6):
            raise ValueError(f"{name}: {_too_coarse(matrices[name], row, wanted, errors[-1])}")
    config = replace(loaded.config, vocab_size=edited["wte"].out_features)
    model = GPT2(config, {**matrices, **edited}, stored.gpt2(loaded).vectors())
    running = model.decoder(activations=loaded.activations)
    provenance = loaded.manifest.provenance
    manifest = artifact.write(
        folder.resolve(),
        stored.contents(model, tokenizer_json, running, loaded.activations),
        quality=loaded.manifest.quality,
        golden=golden(running, read_tokenizer(tokenizer_json)),
        provenance=provenance.model_copy(update={"edits": [*provenance.edits, f"{edit} {pattern.described}"]}),
        force=True,
    )
    return Edited(row, max(errors), manifest)


def _error(table: Format, row: int, wanted: Tensor) -> float:
    """Return how far a stored row is from the vector [D], relative to its norm or, if that is 0, to the mean row's."""
    stored = table.rows(torch.tensor([row]))[0].double()
    size = wanted.norm() if wanted.any() else table.dense().double().norm(dim=1).mean().clamp_min(1e-30)
    return float((stored - wanted).norm() / size)


def _too_coarse(table: Format, row: int, wanted: Tensor, error: float) -> str:
    """Return why a vector is not stored, and what would do."""
    errors = ((codec, _error(with_row(table.recoded(codec), row, wanted), row, wanted)) for codec in FINER)
    finer = next((f"; {codec} would do with {found:.2%}" for codec, found in errors if found < MAX_ERROR), "")
    return (
        f"the vector would be stored with a relative error of {error:.2%}, worse than zeros{finer}: make the artefact "
        "anew with a finer codec or a higher rank"
    )


def _edit_table(table: Format, row: int, pattern: _Pattern) -> Format:
    wanted = pattern.row_in(table)
    if pattern.vector is not None:
        _check_norm(table, wanted)
    if len(pattern.ids) == 1 and not table.inner():  # what is stored of it may be taken as it is
        own = _cut(table, wanted).keys()
        return table.replace_row(
            row, lambda form: {name: _parts_of_row(form.coded()[name], pattern.ids[0]) for name in own}
        )
    return with_row(table, row, wanted)


def _check_norm(table: Format, vector: Tensor) -> None:
    largest = float(table.dense().norm(dim=1).max())
    if (norm := float(vector.norm())) > MAX_NORM_RATIO * largest > 0:
        limit = MAX_NORM_RATIO * largest
        raise ValueError(f"the vector's norm must be at most {limit:.4g}, {MAX_NORM_RATIO} x any row's, not {norm:.4g}")


def _encoded(table: Format, cut: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    return {name: table.coded()[name].codec.encode(values) for name, values in cut.items()}


def _parts_of_row(coded: Coded, row: int) -> dict[str, Tensor]:
    return {name: part[row : row + 1] for name, part in coded.parts().items()}


def _cut(table: Format, vector: Tensor) -> dict[str, Tensor]:
    """Return what `table` keeps of one row, by tensor: [1, ...] each."""
    if table.kind not in ROW_CUTS:
        legal = ", ".join(ROW_CUTS)
        raise ValueError(
            f"it is stored as {table.kind}, whose rows share values, so that none can be changed alone; single tokens "
            f"can be edited in {legal}, and in blocks of these"
        )
    return ROW_CUTS[table.kind](table, vector)


def _cut_dense(table: Format, vector: Tensor) -> dict[str, Tensor]:
    return {"matrix": vector.unsqueeze(0).float()}  # [1, D]


def _cut_token_mps(table: Format, vector: Tensor) -> dict[str, Tensor]:
    modes, ranks = table.options["modes"], table.options["ranks"]
    padded = F.pad(vector.double(), (0, prod(modes) - table.in_features))
    return {"cores": tt_svd(padded.unsqueeze(0), modes, ranks).float()}  # [1, values]


def _cut_low_rank(table: Format, vector: Tensor) -> dict[str, Tensor]:
    """Project on the rows of `right`, which stays: the left factor's row by least squares."""
    coded = table.coded()
    if "column_offset" in coded:
        vector = vector - coded["column_offset"].decode()
    basis = coded["right"].decode().double().T  # [D, r]
    cut = {"left": torch.linalg.lstsq(basis, vector.double().unsqueeze(1)).solution.T.float()}  # [1, r]
    if "row_scale" not in coded:
        return cut
    if not coded["row_scale"].codec.is_float:
        raise ValueError(f"its row_scale is stored as {coded['row_scale'].codec.name}, whose values share a scale")
    return cut | {"row_scale": torch.ones(1)}


# The formats whose rows are independent, and how a row becomes what they store of it.
ROW_CUTS: dict[str, Callable[[Format, Tensor], dict[str, Tensor]]] = {
    "dense": _cut_dense,
    "token_mps": _cut_token_mps,
    "low_rank": _cut_low_rank,
}


def _check_token(token: str) -> None:
    _check_text("token", token)
    if any(unicodedata.category(character) == "Cc" for character in token):
        raise ValueError(f"token: must have no control characters, not {token!r}")
    if (size := len(token.encode())) > MAX_TOKEN_BYTES:
        raise ValueError(f"token: must have at most {MAX_TOKEN_BYTES} bytes of UTF-8, not {size}")


def _check_text(field: str, text: str) -> None:
    if not text:
        raise ValueError(f"{field}: must not be empty")
    if any(unicodedata.category(character) == "Cs" for character in text):
        raise ValueError(f"{field}: must be valid Unicode, not {text!r}")


def _encode(loaded: Artifact[Format], text: str) -> list[int]:
    ids = loaded.tokenizer.encode(text, add_special_tokens=False).ids
    if max(ids, default=0) >= loaded.config.vocab_size:
        raise _beyond_the_table(max(ids), loaded)
    return ids


def _beyond_the_table(token_id: int, loaded: Artifact[Format]) -> ArtifactError:
    size = loaded.config.vocab_size
    return ArtifactError(artifact.TOKENIZER, "vocab", f"numbers a token {token_id}, but the table has {size} rows")


def _add(loaded: Artifact[Format], token: str) -> int:
    """Add `token` to the loaded tokenizer and return its id."""
    tokenizer = loaded.tokenizer
    before = _encode(loaded, token)
    if len(before) == 1 and tokenizer.decode(before, skip_special_tokens=False) == token:
        raise ValueError(f"token: {token!r} is token {before[0]} already; give it another vector with ttgpt vocab set")
    if (other := tokenizer.token_to_id(token)) is not None:
        raise ValueError(f"token: {token!r} is how the tokenizer itself spells token {other}; choose another text")
    known = set(tokenizer.get_vocab().values())
    tokenizer.add_tokens([AddedToken(token, single_word=False, normalized=False, special=False)])
    token_id = tokenizer.token_to_id(token)
    if token_id is None or token_id in known or tokenizer.encode(token, add_special_tokens=False).ids != [token_id]:
        raise ValueError(f"token: the tokenizer cannot take {token!r}")
    if token_id > loaded.config.vocab_size:
        raise _beyond_the_table(token_id, loaded)
    _teach_decoder(tokenizer, token, token_id)
    return token_id


def _teach_decoder(tokenizer: Tokenizer, token: str, token_id: int) -> None:
    """Make decoding give `token` back.

    The byte-level decoder takes a token of letters that all stand for bytes, such as "Zürich", for bytes. So the
    token is respelled for it; no other token is a match of the whole.
    """
    if tokenizer.decode([token_id]) == token:
        return
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    spelled = "".join(piece for piece, _ in byte_level.pre_tokenize_str(token))
    respell = decoders.Replace(Regex(rf"\A{re.escape(token)}\z"), spelled)
    tokenizer.decoder = decoders.Sequence([respell, tokenizer.decoder])
    if tokenizer.decode([token_id]) != token:
        raise ValueError(f"token: the tokenizer's decoder does not give {token!r} back")


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _pattern(loaded: Artifact[Format], like: str | None, vector: Path | None) -> _Pattern:
    if like is not None and vector is None:
        _check_text("like", like)
        ids = tuple(_encode(loaded, like))
        if not ids:
            raise ValueError(f"like: {like!r} has no tokens")
        return _Pattern(described=f"like {_quoted(like)}", ids=ids)
    if vector is not None and like is None:
        data = _read(vector)
        values = _parse_vector(data, loaded.config.n_embd)
        return _Pattern(described=f"from a vector file with sha256 {hashlib.sha256(data).hexdigest()}", vector=values)
    raise ValueError("exactly one of --like and --vector must be given")


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_VECTOR_BYTES:
            raise ValueError(f"vector: {path} must have at most {MAX_VECTOR_BYTES} bytes, not {path.stat().st_size}")
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"vector: cannot read {path}: {error.strerror}") from error


def _parse_vector(data: bytes, width: int) -> Tensor:
    """Return the vector [width] in fp32 of a safetensors or JSON file."""
    is_safetensors = data[8:9] == b"{"  # after the header's length; no list of numbers has a brace
    vector = _from_safetensors(data) if is_safetensors else _from_json(data)
    if vector.shape != (width,):
        raise ValueError(f"vector: must have the shape [{width}], not {list(vector.shape)}")
    if not torch.isfinite(vector).all():
        raise ValueError("vector: must be finite numbers in the range of fp32")
    return vector


def _from_safetensors(data: bytes) -> Tensor:
    try:
        tensors = load(data)
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"vector: is not a safetensors file: {error}") from error
    if tensors.keys() != {"vector"}:
        raise ValueError(f"vector: must be one tensor called 'vector', not {sorted(tensors)}")
    if not tensors["vector"].is_floating_point():
        raise ValueError(f"vector: must hold floating-point numbers, not {tensors['vector'].dtype}")
    return tensors["vector"].float()


def _from_json(data: bytes) -> Tensor:
    try:
        values: Any = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"vector: is neither a safetensors file nor JSON: {error}") from error
    if not isinstance(values, list) or any(type(value) not in (int, float) for value in values):
        raise ValueError("vector: must be a JSON list of numbers")
    return torch.tensor([_as_float(value) for value in values], dtype=torch.float64).float()


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return inf
