"""The artefact: what comes back is what was written, and any damage is named."""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from compressor import stored
from compressor.artifact import folder as artifact
from compressor.artifact.manifest import Manifest
from compressor.errors import ArtifactError
from compressor.methods import svd, tensorgpt
from compressor.runtime.load import as_stored, load
from tests.conftest import tiny_model, write_artifact

read = partial(artifact.read, make=as_stored)
FILES = (*artifact.CHECKED, artifact.TOKENIZER_CONFIG)


@pytest.fixture
def folder(tiny_artifact: Path, tmp_path: Path) -> Path:
    """A copy of the tiny artefact, to be damaged."""
    return Path(shutil.copytree(tiny_artifact, tmp_path / "copy"))


def _reseal(folder: Path) -> None:
    """Make the checksums match whatever the files are now."""
    path = folder / artifact.MANIFEST
    manifest = Manifest.model_validate_json(path.read_bytes())
    files = {name: artifact._sha256(folder / name) for name in FILES if (folder / name).exists()}
    manifest = manifest.model_copy(update={"files": files, "digest": artifact._digest(files)})
    manifest = manifest.model_copy(update={"seal": artifact._seal(manifest.model_dump())})
    path.write_bytes(artifact._canonical(manifest.model_dump()))


def test_a_model_comes_back_bit_for_bit(tmp_path: Path) -> None:
    model = tiny_model()
    table = model.wte.dense()
    compressed = {
        "wte": tensorgpt.compress(table, tensorgpt.Config(rank=2)),
        "h.0.mlp.c_fc": svd.compress(model.matrices()["h.0.mlp.c_fc"].dense(), svd.Config(rank=4, codec="int8")),
        "lm_head": svd.compress(table, svd.Config(rank=3, codec="bf16")),
    }
    model = model.with_matrices(compressed)
    again = stored.gpt2(stored.read(write_artifact(tmp_path / "a", model)))
    assert {name: form.spec() for name, form in again.matrices().items()} == {
        name: form.spec() for name, form in model.matrices().items()
    }
    for name, form in model.matrices().items():
        assert all(torch.equal(again.matrices()[name].tensors()[key], t) for key, t in form.tensors().items())
    assert all(torch.equal(again.vectors()[name].decode(), vector.decode()) for name, vector in model.vectors().items())


def test_the_digest_depends_on_nothing_but_the_contents(tmp_path: Path) -> None:
    one, two = (read(write_artifact(tmp_path / name, tiny_model())).manifest for name in "ab")
    other = read(write_artifact(tmp_path / "c", tiny_model(seed=1))).manifest
    assert one.digest == two.digest != other.digest


def test_bytes_are_what_is_on_disk_and_in_memory(tmp_path: Path) -> None:
    model = tiny_model()
    model = model.with_matrices({"wte": tensorgpt.compress(model.wte.dense(), tensorgpt.Config(rank=1))})
    folder = write_artifact(tmp_path / "a", model)
    manifest = read(folder).manifest
    assert manifest.weight_bytes == sum(t.nbytes for t in load_file(folder / "model.safetensors").values())
    assert manifest.resident_bytes == sum(load(folder)[1].num_bytes.values())
    config = model.config
    parameters = sum(a * b for a, b in config.matrix_shapes().values()) + sum(
        n for (n,) in config.vector_shapes().values()
    )
    assert manifest.dense_bytes == 4 * parameters
    assert manifest.bytes["wte"].disk == config.vocab_size * 10 * 2  # 2^5, R=1: 10 fp16 values per token


@pytest.mark.parametrize("file", [*FILES, artifact.MANIFEST])
def test_a_missing_truncated_or_changed_file_is_named(folder: Path, file: str) -> None:
    path = folder / file
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[: len(whole) // 2], b"", whole + b" "):
        path.write_bytes(damaged)
        with pytest.raises(ArtifactError) as caught:
            read(folder)
        assert caught.value.file == file
    path.unlink()
    with pytest.raises(ArtifactError, match=f"^{file}.*is missing"):
        read(folder)


@pytest.mark.parametrize("file", [*FILES, artifact.MANIFEST])
def test_a_flipped_bit_anywhere_is_found(folder: Path, file: str) -> None:
    path = folder / file
    whole = bytearray(path.read_bytes())
    positions = random.Random(0).sample(range(len(whole)), 25)
    for position in positions:
        flipped = bytearray(whole)
        flipped[position] ^= 1
        path.write_bytes(flipped)
        with pytest.raises(ArtifactError):
            read(folder)
    path.write_bytes(whole)
    read(folder)


def _json(file: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        raw = json.loads((folder / file).read_text())
        change(raw)
        (folder / file).write_bytes(artifact._canonical(raw))

    return damage


def _weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / artifact.WEIGHTS)
        change(tensors)
        save_file(tensors, folder / artifact.WEIGHTS)

    return damage


_config, _manifest = partial(_json, artifact.CONFIG), partial(_json, artifact.MANIFEST)
CONSISTENT_DAMAGE = {
    "unknown key": (_config(lambda raw: raw.update(surplus=1)), "config.json", "surplus"),
    "unknown compression key": (
        _config(lambda raw: raw["compression"].update(surplus=1)),
        "config.json",
        "compression.surplus",
    ),
    "unknown matrix key": (
        _config(lambda raw: raw["compression"]["matrices"]["wpe"].update(surplus=1)),
        "config.json",
        "compression.matrices.wpe.surplus",
    ),
    "another model type": (_config(lambda raw: raw.update(model_type="gpt2")), "config.json", "model_type"),
    "another schema": (
        _config(lambda raw: raw["compression"].update(schema_version=3)),
        "config.json",
        "compression.schema_version",
    ),
    "activations of 7 bits": (
        _config(lambda raw: raw["compression"].update(activations=7)),
        "config.json",
        "compression.activations",
    ),
    "an illegal option": (
        _config(lambda raw: raw["compression"]["matrices"]["wpe"].update(options={"rank": 1})),
        "config.json",
        "compression.matrices.wpe",
    ),
    "an unknown codec": (
        _config(lambda raw: raw["compression"].update(vectors="int5")),
        "config.json",
        "compression.vectors",
    ),
    "missing hyper-parameter": (_config(lambda raw: raw.pop("n_head")), "config.json", ""),
    "no compression": (_config(lambda raw: raw.pop("compression")), "config.json", "compression"),
    "missing matrix": (
        _config(lambda raw: raw["compression"]["matrices"].pop("h.1.mlp.c_fc")),
        "config.json",
        "compression.matrices",
    ),
    "wrong shape": (
        _weights(lambda tensors: tensors.update({"wpe.matrix.values": torch.zeros(3, 32)})),
        "model.safetensors",
        "wpe.matrix.values",
    ),
    "wrong dtype": (
        _weights(lambda tensors: tensors.update({"ln_f.bias.values": torch.zeros(32).double()})),
        "model.safetensors",
        "ln_f.bias.values",
    ),
    "missing tensor": (
        _weights(lambda tensors: tensors.pop("wte.matrix.values")),
        "model.safetensors",
        "wte.matrix.values",
    ),
    "unknown tensor": (
        _weights(lambda tensors: tensors.update(surplus=torch.zeros(1))),
        "model.safetensors",
        "surplus",
    ),
    "wrong sizes": (_manifest(lambda raw: raw["bytes"]["wte"].update(disk=1)), "manifest.json", "bytes"),
}


@pytest.mark.parametrize("case", CONSISTENT_DAMAGE)
def test_what_checksums_cannot_see_is_refused_by_field(folder: Path, case: str) -> None:
    damage, file, field = CONSISTENT_DAMAGE[case]
    damage(folder)
    _reseal(folder)
    with pytest.raises(ArtifactError) as caught:
        read(folder)
    assert (caught.value.file, caught.value.field) == (file, field)


@pytest.mark.parametrize(
    ("method", "config", "command"),
    [
        ("quantize", {"codec": "int8", "rest": "as in the checkpoint"}, "tiny --method quantize --codec int8 --out"),
        ("svd", {"rank": 64, "rest": "int8", "heal": {"tokens": 9}}, "--rank 64 --rest int8 --heal-tokens 9 --out DIR"),
        ("budget", {"ratio": 8.0, "target": "all", "plan": [1]}, "compress tiny --ratio 8.0 --target all --out DIR"),
    ],
)
def test_an_older_artefact_is_refused_with_what_makes_it_anew(
    folder: Path, method: str, config: dict[str, Any], command: str
) -> None:
    _config(lambda raw: raw["compression"].update(schema_version=1))(folder)
    _manifest(lambda raw: raw["provenance"].update(method=method, config=config))(folder)
    _reseal(folder)
    with pytest.raises(ArtifactError, match=rf"schema_version: is 1, and only 2 is read; .*{command}"):
        read(folder)


def test_an_unknown_key_in_the_manifest_is_refused(folder: Path) -> None:
    _manifest(lambda raw: raw.update(surplus=1))(folder)
    with pytest.raises(ArtifactError, match=r"^manifest.json: surplus: "):
        read(folder)


def test_a_folder_that_is_no_artefact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such artefact"):
        read(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match=r"^manifest.json: is missing"):
        read(tmp_path)


def test_an_existing_artefact_is_replaced_only_by_force(tmp_path: Path) -> None:
    folder = write_artifact(tmp_path / "a", tiny_model())
    before = read(folder).manifest.digest
    with pytest.raises(ArtifactError, match="exists already; choose another --out or add --force"):
        write_artifact(folder, tiny_model(seed=1))
    assert read(folder).manifest.digest == before
    write_artifact(folder, tiny_model(seed=1), force=True)
    assert read(folder).manifest.digest != before
    assert os.listdir(tmp_path) == ["a"]


def test_force_does_not_replace_what_is_no_artefact(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match="is not an artefact, so --force does not replace it"):
        write_artifact(tmp_path, tiny_model(), force=True)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def _loads(folder: Path) -> bool:
    try:
        read(folder)
    except ArtifactError:
        return False
    return True


@pytest.fixture
def single_thread() -> Iterator[None]:
    """A forked child has no thread pool to wait for."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("single_thread")
def test_killing_the_writer_at_any_moment_leaves_all_or_nothing(tmp_path: Path) -> None:
    model, target = tiny_model(), tmp_path / "a"
    started = time.perf_counter()
    digest = read(write_artifact(tmp_path / "timed", model)).manifest.digest
    duration = time.perf_counter() - started
    shutil.rmtree(tmp_path / "timed")
    for moment in range(20):
        child = os.fork()
        if child == 0:
            try:
                write_artifact(target, model)
            finally:
                os._exit(0)
        time.sleep(duration * moment / 16)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        loading = [path for path in tmp_path.iterdir() if _loads(path)]
        assert loading in ([], [target])
        if loading:
            assert read(target).manifest.digest == digest
            shutil.rmtree(target)
    write_artifact(target, model)
    assert os.listdir(tmp_path) == ["a"]


def test_an_artefact_moved_aside_by_a_killed_writer_comes_back(tmp_path: Path) -> None:
    folder = write_artifact(tmp_path / "a", tiny_model())
    digest = read(folder).manifest.digest
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    folder.rename(tmp_path / f".a.replaced-{child}")
    with pytest.raises(ArtifactError, match="exists already"):
        write_artifact(folder, tiny_model(seed=1))
    assert read(folder).manifest.digest == digest
