"""The artefact: a folder that holds one compressed model, sealed by checksums.

    config.json        GPT-2's hyper-parameters and, under "compression", a format per matrix
    model.safetensors  only tensors
    tokenizer.json     byte-level BPE
    tokenizer_config.json  for transformers only; older artefacts have none
    manifest.json      checksums, digest, bytes, quality, golden values; canonical JSON with a seal

`write` makes the folder under a temporary name, reads it back, flushes it to disk and renames it, so
that whatever interrupts it leaves either the whole artefact or none. `read` trusts nothing, and reads every file once:
what it has verified is what it returns, whatever happens to the folder meanwhile or later.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from math import prod
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError
from tokenizers import Tokenizer

from compressor.artifact import tensor_file
from compressor.artifact.gpt2_config import COMPONENTS, GPT2Config, component_of
from compressor.artifact.layouts import Part, codec_layout, tensors_of
from compressor.artifact.manifest import SCHEMA_VERSION, Bytes, Compression, Golden, Manifest, Provenance, Quality, Spec
from compressor.artifact.tensor_file import Array, Place
from compressor.artifact.tokenizer import check_size, end_of_text, read_tokenizer, tokenizer_config
from compressor.errors import ArtifactError
from compressor.storage import durable, files

CONFIG, WEIGHTS, TOKENIZER, MANIFEST = "config.json", "model.safetensors", "tokenizer.json", "manifest.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
CHECKED = (CONFIG, WEIGHTS, TOKENIZER)  # what the digest is of: these decide what the model says

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")  # what a matrix is made into
Arrays = Mapping[str, Array]
Parse = Callable[[bytes], Tokenizer]


class Owner(NamedTuple):
    """The matrix that tensors belong to.

    Attributes:
        digest: of its artefact.
        name: of the matrix.
        is_head: whether it is the head.
        activations: bits of rounded rows, see `Compression`.
    """

    digest: str
    name: str
    is_head: bool
    activations: int = 16


Make = Callable[[Owner, Arrays, Spec], T]


@dataclass(frozen=True)
class Artifact(Generic[T]):
    """An artefact in memory, none of which is backed by its files any more.

    Attributes:
        name: the folder's.
        config: hyper-parameters.
        specs: of every matrix, by name.
        matrices: what was made of them.
        vectors: the stored parts of every bias and LayerNorm vector.
        vector_codec: what they are stored by.
        activations: bits of rounded rows, see `Compression`.
        tokenizer: text to ids.
        tokenizer_json: the file that it was made of.
        manifest: what the artefact says about itself.
        size_bytes: of all files.
        modified_seconds: when the manifest was written, in seconds since 1970.
    """

    name: str
    config: GPT2Config
    specs: Mapping[str, Spec]
    matrices: Mapping[str, T]
    vectors: Mapping[str, Arrays]
    vector_codec: str
    activations: Literal[16, 8]
    tokenizer: Tokenizer
    tokenizer_json: bytes
    manifest: Manifest
    size_bytes: int
    modified_seconds: int

    @property
    def end_of_text(self) -> str:
        """What the tokenizer calls the token that ends a text."""
        return end_of_text(self.tokenizer, self.config.eos_token_id)


@dataclass(frozen=True)
class Contents:
    """What an artefact is written from, besides what is said about it.

    Attributes:
        config: hyper-parameters.
        compression: how everything is stored.
        save_tensors: writes the safetensors file.
        tokenizer_json: the tokenizer.
        make: what every matrix is read back by, see `read`.
        resident: bytes in memory of every matrix and vector.
    """

    config: GPT2Config
    compression: Compression
    save_tensors: Callable[[Path], None]
    tokenizer_json: bytes
    make: Make[Any]
    resident: Mapping[str, int]


def measure_bytes(
    config: GPT2Config, compression: Compression, resident: Mapping[str, int] | None = None, *, tied: bool = False
) -> dict[str, Bytes]:
    """Return the sizes of every component.

    Args:
        config: hyper-parameters.
        compression: how everything is stored.
        resident: bytes in memory of every matrix and vector; 0 by default.
        tied: whether the dense model's head is its embedding though this one's is apart.
    """
    disk, dense, memory = (dict.fromkeys(COMPONENTS, 0) for _ in range(3))
    for name, spec in compression.matrices.items():
        component = component_of(name)
        disk[component] += sum(part.num_bytes for part in tensors_of(spec).values())
        if name != "lm_head" or not tied:
            dense[component] += 4 * prod(spec.shape)
    for name, shape in config.vector_shapes().items():
        component = component_of(name)
        disk[component] += sum(part.num_bytes for part in codec_layout(compression.vectors, shape).values())
        dense[component] += 4 * prod(shape)
    for name, count in (resident or {}).items():
        memory[component_of(name)] += count
    return {c: Bytes(disk=disk[c], resident=memory[c], dense_fp32=dense[c]) for c in COMPONENTS}


def write(
    folder: Path,
    contents: Contents,
    *,
    quality: Quality,
    golden: Golden,
    provenance: Provenance,
    force: bool = False,
) -> Manifest:
    """Write an artefact to `folder`, all of it or nothing, and read it back.

    Args:
        folder: to be made.
        contents: what it is made of.
        quality: what was measured.
        golden: known answers.
        provenance: how it was made.
        force: replace an artefact in `folder`.

    Raises:
        ArtifactError: if `folder` exists and `force` is not set, or does not read back.
    """
    config, compression, tokenizer_json = contents.config, contents.compression, contents.tokenizer_json
    durable.clear_leftovers(folder)
    refuse_existing(folder, force)
    with durable.replacing(folder) as new:
        new.mkdir()
        tokenizer = _parse_tokenizer(tokenizer_json, config)
        texts = {CONFIG: _canonical(_config_json(config, compression)), TOKENIZER: tokenizer_json}
        texts[TOKENIZER_CONFIG] = tokenizer_config(tokenizer, config.eos_token_id, config.n_positions)
        for name, data in texts.items():
            (new / name).write_bytes(data)
        contents.save_tensors(new / WEIGHTS)
        checksums = {name: _sha256(new / name) for name in (*texts, WEIGHTS)}
        manifest = Manifest(
            digest=_digest(checksums),
            files=checksums,
            bytes=measure_bytes(config, compression, contents.resident),
            quality=quality,
            golden=golden,
            provenance=provenance,
        )
        manifest = manifest.model_copy(update={"seal": _seal(manifest.model_dump())})
        (new / MANIFEST).write_bytes(_canonical(manifest.model_dump()))
        _read(new, folder.name, contents.make)
    return manifest


def refuse_existing(folder: Path, force: bool) -> None:
    """Raise ArtifactError if `folder` exists and may not be replaced, or is not an artefact's."""
    if folder.exists() or folder.is_symlink():
        if not force:
            raise ArtifactError(str(folder), "", "exists already; choose another --out or add --force to replace it")
        if not (folder / MANIFEST).is_file() and not (folder.is_dir() and not any(folder.iterdir())):
            raise ArtifactError(str(folder), "", "is not an artefact, so --force does not replace it")


def read(folder: Path, make: Make[T], parse: Parse = read_tokenizer) -> Artifact[T]:
    """Return the artefact in `folder`, after checking every byte of it.

    Args:
        folder: of the artefact.
        make: is given the tensors of every matrix as soon as they are read; they are then forgotten here.
        parse: makes a tokenizer of its file; several artefacts may share one.

    Raises:
        ArtifactError: naming the file and the field that is missing, damaged, unknown or misshapen.
    """
    if not folder.is_dir():
        raise ArtifactError(str(folder), "", "there is no such artefact folder; make one with ttgpt compress")
    if any(durable.UNFINISHED.fullmatch(part) for part in folder.resolve().parts[-2:]):
        raise ArtifactError(str(folder), "", "was left by a writer that did not finish; make it again")
    return _read(folder, folder.resolve().name, make, parse)


def _read(folder: Path, name: str, make: Make[T], parse: Parse = read_tokenizer) -> Artifact[T]:
    data, modified_seconds = _load(folder / MANIFEST)
    manifest = _parse_manifest(data)
    texts = {file: _load_checked(folder, file, manifest) for file in sorted(manifest.files.keys() - {WEIGHTS})}
    config, compression = _parse_config(_parse_json(texts[CONFIG], CONFIG), manifest)
    layouts = _layouts(config, compression)
    if {c: (size.disk, size.dense_fp32) for c, size in manifest.bytes.items()} != {
        c: (size.disk, size.dense_fp32) for c, size in measure_bytes(config, compression).items()
    }:
        raise ArtifactError(MANIFEST, "bytes", "does not match the tensors")
    matrices, vectors, size_bytes = _read_weights(folder / WEIGHTS, layouts, compression, manifest, make)
    return Artifact(
        name=name,
        config=config,
        specs=compression.matrices,
        matrices=matrices,
        vectors=vectors,
        vector_codec=compression.vectors,
        activations=compression.activations,
        tokenizer=_parse_tokenizer(texts[TOKENIZER], config, parse),
        tokenizer_json=texts[TOKENIZER],
        manifest=manifest,
        size_bytes=len(data) + sum(map(len, texts.values())) + size_bytes,
        modified_seconds=modified_seconds,
    )


def _parse_manifest(data: bytes) -> Manifest:
    """Return the manifest, its seal verified."""
    raw = _parse_json(data, MANIFEST)
    manifest = _parse(Manifest, raw, MANIFEST, "")
    if _canonical(raw) != data:
        raise ArtifactError(MANIFEST, "", "is not in canonical form, so it was changed after it was written")
    if manifest.seal != _seal(raw):
        raise ArtifactError(MANIFEST, "seal", "does not match the contents, so the file was changed")
    if manifest.files.keys() - {TOKENIZER_CONFIG} != set(CHECKED):
        raise ArtifactError(MANIFEST, "files", f"must name {sorted(CHECKED)}, not {sorted(manifest.files)}")
    if manifest.digest != _digest(manifest.files):
        raise ArtifactError(MANIFEST, "digest", "does not match the files")
    return manifest


def _load_checked(folder: Path, name: str, manifest: Manifest) -> bytes:
    data, _ = _load(folder / name)
    _check_sha256(name, hashlib.sha256(data).hexdigest(), manifest)
    return data


def _read_weights(
    path: Path, layouts: Mapping[str, Mapping[str, Part]], compression: Compression, manifest: Manifest, make: Make[T]
) -> tuple[dict[str, T], dict[str, Arrays], int]:
    """Return what `make` makes of every matrix, the parts of every vector, and the bytes of the file."""
    wanted = {f"{owner}.{key}": (owner, key, part) for owner, parts in layouts.items() for key, part in parts.items()}
    specs, head = compression.matrices, "lm_head" if "lm_head" in compression.matrices else "wte"
    waiting: dict[str, dict[str, Array]] = {owner: {} for owner in layouts}  # which vectors stay in
    made: dict[str, T] = {}
    try:
        with tensor_file.opened(path) as file:
            _check_places(file.places, {name: part for name, (_, _, part) in wanted.items()})
            for name, values in file.tensors():
                owner, key, _ = wanted[name]
                waiting[owner][key] = values
                if owner in specs and waiting[owner].keys() == layouts[owner].keys():
                    whose = Owner(manifest.digest, owner, owner == head, compression.activations)
                    made[owner] = _made(whose, make, waiting.pop(owner), specs[owner])
            _check_sha256(WEIGHTS, file.sha256, manifest)
            return {name: made[name] for name in specs}, dict(waiting), file.size_bytes
    except OSError as error:
        raise _unreadable(path, error) from error
    except ValueError as error:
        _check_sha256(WEIGHTS, _sha256(path), manifest)  # which says more, where the file is another one
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(WEIGHTS, "", f"is not a safetensors file: {error}") from error


def _layouts(config: GPT2Config, compression: Compression) -> dict[str, dict[str, Part]]:
    """Return the tensors of every matrix and vector."""
    shapes = config.matrix_shapes()
    if "lm_head" in compression.matrices:
        shapes["lm_head"] = shapes["wte"]
    found = {}
    for name, spec in compression.matrices.items():
        if name not in shapes:
            raise ArtifactError(CONFIG, "compression.matrices", f"matrix {name} is unknown")
        if spec.shape != shapes[name]:
            problem = f"matrix {name} must have shape {list(shapes[name])}, not {list(spec.shape)}"
            raise ArtifactError(CONFIG, "compression.matrices", problem)
        try:
            found[name] = tensors_of(spec)
        except ValueError as error:
            raise ArtifactError(CONFIG, f"compression.matrices.{name}", str(error)) from error
    if missing := shapes.keys() - found.keys():
        raise ArtifactError(CONFIG, "compression.matrices", f"matrix {min(missing)} is missing")
    try:
        vectors = {name: codec_layout(compression.vectors, shape) for name, shape in config.vector_shapes().items()}
    except ValueError as error:
        raise ArtifactError(CONFIG, "compression.vectors", str(error)) from error
    return found | vectors


def _check_places(places: Iterable[Place], wanted: Mapping[str, Part]) -> None:
    """Refuse tensors that are missing, unknown or misshapen."""
    found = {place.name: place.part for place in places}
    if missing := wanted.keys() - found.keys():
        raise ArtifactError(WEIGHTS, min(missing), "is missing")
    if unknown := found.keys() - wanted.keys():
        raise ArtifactError(WEIGHTS, min(unknown), "is an unknown tensor")
    for name, part in wanted.items():
        if found[name] != part:
            raise ArtifactError(WEIGHTS, name, f"must be {part}, not {found[name]}")


def _made(owner: Owner, make: Make[T], tensors: Arrays, spec: Spec) -> T:
    try:
        return make(owner, tensors, spec)
    except ValueError as error:
        raise ArtifactError(WEIGHTS, owner.name, str(error)) from error


def _check_sha256(name: str, found: str, manifest: Manifest) -> None:
    if found != manifest.files[name]:
        raise ArtifactError(name, "sha256", "does not match the manifest, so the file is truncated or changed")


def _parse_tokenizer(data: bytes, config: GPT2Config, parse: Parse = read_tokenizer) -> Tokenizer:
    try:
        tokenizer = parse(data)
        check_size(tokenizer, config.vocab_size)
        end_of_text(tokenizer, config.eos_token_id)
    except ValueError as error:
        raise ArtifactError(TOKENIZER, "", str(error)) from error
    return tokenizer


def _config_json(config: GPT2Config, compression: Compression) -> dict[str, Any]:
    hyper = {field.name: getattr(config, field.name) for field in fields(GPT2Config)}
    default = {"activations"} if compression.activations == Compression.model_fields["activations"].default else None
    return {"model_type": "ttgpt", **hyper, "compression": compression.model_dump(exclude=default)}


def _parse_config(raw: Any, manifest: Manifest) -> tuple[GPT2Config, Compression]:
    if not isinstance(raw, dict):
        raise ArtifactError(CONFIG, "", "must be a JSON object")
    if raw.get("model_type") != "ttgpt":
        raise ArtifactError(CONFIG, "model_type", f"must be 'ttgpt', not {raw.get('model_type')!r}")
    known = {field.name for field in fields(GPT2Config)}
    if unknown := raw.keys() - known - {"model_type", "compression"}:
        raise ArtifactError(CONFIG, min(unknown), "is an unknown key")
    _check_version(raw.get("compression"), manifest)
    compression = _parse(Compression, raw.get("compression"), CONFIG, "compression")
    try:
        return GPT2Config(**{key: raw[key] for key in known & raw.keys()}), compression
    except (TypeError, ValueError) as error:
        raise ArtifactError(CONFIG, "", str(error)) from error


def _check_version(raw: Any, manifest: Manifest) -> None:
    """Refuse an artefact of an older version of this package, naming what makes it anew."""
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if type(version) is int and 0 < version < SCHEMA_VERSION:
        problem = f"is {version}, and only {SCHEMA_VERSION} is read; make it anew: {manifest.provenance.command}"
        raise ArtifactError(CONFIG, "compression.schema_version", problem)


def _parse(kind: type[M], raw: Any, file: str, field: str) -> M:
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in (field, *first["loc"]) if part != "")
        raise ArtifactError(file, where, first["msg"].lower()) from error


def _load(path: Path) -> tuple[bytes, int]:
    """Return what is in a file, and when it was written in seconds since 1970."""
    try:
        with files.opened(path) as file:
            return file.read(), int(os.fstat(file.fileno()).st_mtime)
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> ArtifactError:
    if isinstance(error, FileNotFoundError):
        return ArtifactError(path.name, "", f"is missing in {path.parent}")
    return ArtifactError(path.name, "", f"cannot be read in {path.parent}: {error.strerror}")


def _parse_json(data: bytes, name: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(name, "", f"is not JSON: {error}") from error


def _canonical(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def _seal(raw: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical({key: value for key, value in raw.items() if key != "seal"})).hexdigest()


def _digest(checksums: Mapping[str, str]) -> str:
    return hashlib.sha256("".join(f"{name} {checksums[name]}\n" for name in sorted(CHECKED)).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
