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
from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import prod
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from compressor.artifact import tensor_file
from compressor.artifact.gpt2_config import COMPONENTS, GPT2Config, component_of
from compressor.artifact.manifest import SCHEMA_VERSION, Bytes, Compression, Golden, Manifest, Provenance, Quality
from compressor.artifact.tokenizer import check_size, end_of_text, read_tokenizer, tokenizer_config
from compressor.codecs import Coded, codec_named
from compressor.errors import ArtifactError
from compressor.formats import from_tensors, resident_bytes
from compressor.gpt2 import GPT2
from compressor.storage import durable, files

CONFIG, WEIGHTS, TOKENIZER, MANIFEST = "config.json", "model.safetensors", "tokenizer.json", "manifest.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
CHECKED = (CONFIG, WEIGHTS, TOKENIZER)  # what the digest is of: these decide what the model says

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Artifact:
    """An artefact in memory, none of which is backed by its files any more.

    Attributes:
        name: the folder's.
        model: as stored; `model.prepared()` is what runs.
        tokenizer: text to ids.
        tokenizer_json: the file that it was made of.
        manifest: what the artefact says about itself.
        size_bytes: of all files.
        modified_seconds: when the manifest was written, in seconds since 1970.
    """

    name: str
    model: GPT2
    tokenizer: Tokenizer
    tokenizer_json: bytes
    manifest: Manifest
    size_bytes: int
    modified_seconds: int

    @property
    def end_of_text(self) -> str:
        """What the tokenizer calls the token that ends a text."""
        return end_of_text(self.tokenizer, self.model.config.eos_token_id)


def measure_bytes(model: GPT2, *, tied: bool = False) -> dict[str, Bytes]:
    """Return the sizes of every component of `model`.

    Args:
        model: as stored.
        tied: whether the dense model's head is its embedding though this one's is apart.
    """
    disk, resident, dense = (dict.fromkeys(COMPONENTS, 0) for _ in range(3))
    for name, form in model.matrices().items():
        component = component_of(name)
        disk[component] += form.num_bytes
        resident[component] += resident_bytes(form)
        if name != "lm_head" or not tied:
            dense[component] += 4 * form.out_features * form.in_features
    for name, vector in model.vectors().items():
        component = component_of(name)
        disk[component] += vector.num_bytes
        resident[component] += 4 * prod(vector.shape)
        dense[component] += 4 * prod(vector.shape)
    return {c: Bytes(disk=disk[c], resident=resident[c], dense_fp32=dense[c]) for c in COMPONENTS}


def write(
    folder: Path,
    model: GPT2,
    tokenizer_json: bytes,
    *,
    quality: Quality,
    golden: Golden,
    provenance: Provenance,
    force: bool = False,
) -> Manifest:
    """Write an artefact to `folder`, all of it or nothing, and read it back.

    Raises:
        ArtifactError: if `folder` exists and `force` is not set, or does not read back.
    """
    durable.clear_leftovers(folder)
    refuse_existing(folder, force)
    with durable.replacing(folder) as new:
        new.mkdir()
        tokenizer = _parse_tokenizer(tokenizer_json, model.config)
        texts = {CONFIG: _canonical(_config_json(model)), TOKENIZER: tokenizer_json}
        texts[TOKENIZER_CONFIG] = tokenizer_config(tokenizer, model.config.eos_token_id, model.config.n_positions)
        for name, data in texts.items():
            (new / name).write_bytes(data)
        save_file(_named_tensors(model), new / WEIGHTS)
        checksums = {name: _sha256(new / name) for name in (*texts, WEIGHTS)}
        manifest = Manifest(
            digest=_digest(checksums),
            files=checksums,
            bytes=measure_bytes(model),
            quality=quality,
            golden=golden,
            provenance=provenance,
        )
        manifest = manifest.model_copy(update={"seal": _seal(manifest.model_dump())})
        (new / MANIFEST).write_bytes(_canonical(manifest.model_dump()))
        _read(new, folder.name)
    return manifest


def refuse_existing(folder: Path, force: bool) -> None:
    """Raise ArtifactError if `folder` exists and may not be replaced, or is not an artefact's."""
    if folder.exists() or folder.is_symlink():
        if not force:
            raise ArtifactError(str(folder), "", "exists already; choose another --out or add --force to replace it")
        if not (folder / MANIFEST).is_file() and not (folder.is_dir() and not any(folder.iterdir())):
            raise ArtifactError(str(folder), "", "is not an artefact, so --force does not replace it")


def read(folder: Path) -> Artifact:
    """Return the artefact in `folder`, after checking every byte of it.

    Raises:
        ArtifactError: naming the file and the field that is missing, damaged, unknown or misshapen.
    """
    if not folder.is_dir():
        raise ArtifactError(str(folder), "", "there is no such artefact folder; make one with ttgpt compress")
    if any(durable.UNFINISHED.fullmatch(part) for part in folder.resolve().parts[-2:]):
        raise ArtifactError(str(folder), "", "was left by a writer that did not finish; make it again")
    return _read(folder, folder.resolve().name)


def _read(folder: Path, name: str) -> Artifact:
    data, modified_seconds = _load(folder / MANIFEST)
    manifest = _parse_manifest(data)
    texts = {file: _load_checked(folder, file, manifest) for file in sorted(manifest.files.keys() - {WEIGHTS})}
    config, compression = _parse_config(_parse_json(texts[CONFIG], CONFIG))
    weights = _load_weights(folder / WEIGHTS, manifest)
    model = _build_model(weights.tensors, config, compression)
    if manifest.bytes != measure_bytes(model):
        raise ArtifactError(MANIFEST, "bytes", "does not match the tensors")
    return Artifact(
        name=name,
        model=model,
        tokenizer=_parse_tokenizer(texts[TOKENIZER], config),
        tokenizer_json=texts[TOKENIZER],
        manifest=manifest,
        size_bytes=len(data) + sum(map(len, texts.values())) + weights.size_bytes,
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


def _load_weights(path: Path, manifest: Manifest) -> tensor_file.TensorFile:
    try:
        weights = tensor_file.read(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    except ValueError as error:
        _check_sha256(WEIGHTS, _sha256(path), manifest)
        raise ArtifactError(WEIGHTS, "", f"is not a safetensors file: {error}") from error
    _check_sha256(WEIGHTS, weights.sha256, manifest)
    return weights


def _check_sha256(name: str, found: str, manifest: Manifest) -> None:
    if found != manifest.files[name]:
        raise ArtifactError(name, "sha256", "does not match the manifest, so the file is truncated or changed")


def _parse_tokenizer(data: bytes, config: GPT2Config) -> Tokenizer:
    try:
        tokenizer = read_tokenizer(data)
        check_size(tokenizer, config.vocab_size)
        end_of_text(tokenizer, config.eos_token_id)
    except ValueError as error:
        raise ArtifactError(TOKENIZER, "", str(error)) from error
    return tokenizer


def _config_json(model: GPT2) -> dict[str, Any]:
    matrices = {name: form.spec() for name, form in model.matrices().items()}
    compression = Compression(schema_version=SCHEMA_VERSION, vectors=model.vector_codec, matrices=matrices)
    hyper = {field.name: getattr(model.config, field.name) for field in fields(GPT2Config)}
    return {"model_type": "ttgpt", **hyper, "compression": compression.model_dump()}


def _parse_config(raw: Any) -> tuple[GPT2Config, Compression]:
    if not isinstance(raw, dict):
        raise ArtifactError(CONFIG, "", "must be a JSON object")
    if raw.get("model_type") != "ttgpt":
        raise ArtifactError(CONFIG, "model_type", f"must be 'ttgpt', not {raw.get('model_type')!r}")
    known = {field.name for field in fields(GPT2Config)}
    if unknown := raw.keys() - known - {"model_type", "compression"}:
        raise ArtifactError(CONFIG, min(unknown), "is an unknown key")
    compression = _parse(Compression, raw.get("compression"), CONFIG, "compression")
    try:
        return GPT2Config(**{key: raw[key] for key in known & raw.keys()}), compression
    except (TypeError, ValueError) as error:
        raise ArtifactError(CONFIG, "", str(error)) from error


def _named_tensors(model: GPT2) -> dict[str, Tensor]:
    tensors = {f"{name}.{key}": t for name, form in model.matrices().items() for key, t in form.tensors().items()}
    for name, vector in model.vectors().items():
        tensors |= {f"{name}.{part}": tensor for part, tensor in vector.parts().items()}
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _build_model(tensors: dict[str, Tensor], config: GPT2Config, compression: Compression) -> GPT2:
    """Return the model of which `tensors`, left empty, are all values."""
    matrices = {}
    for name, spec in compression.matrices.items():
        try:
            matrices[name] = from_tensors(_take_prefixed(tensors, name), spec)
        except ValueError as error:
            raise ArtifactError(WEIGHTS, name, str(error)) from error
    vectors = {}
    for name, shape in config.vector_shapes().items():
        try:
            vectors[name] = Coded(codec_named(compression.vectors), shape, _take_prefixed(tensors, name))
        except ValueError as error:
            raise ArtifactError(WEIGHTS, name, str(error)) from error
    if tensors:
        raise ArtifactError(WEIGHTS, min(tensors), "is an unknown tensor")
    try:
        return GPT2(config, matrices, vectors)
    except ValueError as error:
        raise ArtifactError(CONFIG, "compression.matrices", str(error)) from error


def _take_prefixed(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Remove and return the tensors below `name`, except biases, which are vectors of their own."""
    prefix = f"{name}."
    own = [key for key in tensors if key.startswith(prefix) and not key.startswith(f"{name}.bias.")]
    return {key.removeprefix(prefix): tensors.pop(key) for key in own}


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
