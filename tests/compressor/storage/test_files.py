"""What is written can be read by others, and what is read is one's own."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from compressor import huggingface
from compressor.errors import CheckpointError
from compressor.storage import files
from compressor.tensors import DTYPES, read
from tests.cases import FORMAT_CASES
from tests.conftest import TOKENIZER, tiny_model

TENSORS = {
    "b": torch.arange(12.0).reshape(3, 4),
    "a": torch.arange(5).double(),
    "scalar": torch.zeros(()),
    "empty": torch.empty(0, 3),
    "half": torch.ones(7).half(),
    "bf16": torch.ones(7).bfloat16(),
    "transposed": torch.arange(6.0).reshape(2, 3).T,
    'sign \N{GREEK SMALL LETTER ALPHA} "': torch.tensor([True, False]),
} | {str(kind): torch.ones(3, dtype=kind) for kind in DTYPES.values()}


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
@pytest.mark.parametrize("tensors", [TENSORS, {}], ids=["many", "none"])
def test_it_reads_what_safetensors_writes(
    tmp_path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None
) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(save({name: t.contiguous() for name, t in tensors.items()}, metadata))
    found, sha256 = read(path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        again = found[name]
        assert (again.dtype, again.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(again, tensor)
        assert again.data_ptr() % 16 == 0
    assert sha256 == subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout[:64]  # noqa: S607


@pytest.mark.parametrize("codec", ["fp16", "int8", "int3"])
def test_whatever_a_format_stores_comes_back(tmp_path: Path, codec: str) -> None:
    for case in FORMAT_CASES.values():
        tensors = dict(case().recoded(codec).tensors())
        (tmp_path / "x.safetensors").write_bytes(save(tensors))
        found, _ = read(tmp_path / "x.safetensors")
        assert found.keys() == tensors.keys()
        assert all(found[k].dtype == t.dtype and torch.equal(found[k], t) for k, t in tensors.items())


def _with_header(header: object, data: bytes = bytes(8)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def _one(**changes: object) -> bytes:
    return _with_header({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes})


DAMAGED = {
    "nothing": b"",
    "seven bytes": bytes(7),
    "zeros": bytes(100),
    "a header longer than the file": (1 << 40).to_bytes(8, "little") + b"{}",
    "text": b"version https://git-lfs.github.com/spec/v1\n" * 3,
    "no JSON": _with_header(b"{'x'}"),
    "no UTF-8": _with_header(b"\xff\xfe"),
    "depth": _with_header(b"[" * 100_000),
    "a list": _with_header([]),
    "a name twice": _with_header(b'{"x":1,"x":2}'),
    "no entry": _with_header({"x": 5}),
    "a missing key": _with_header({"x": {"dtype": "F32", "shape": [2]}}),
    "another key": _one(more=1),
    "an unknown dtype": _one(dtype="F8_E4M3"),
    "a dtype that is a list": _one(dtype=[1]),
    "a shape that is a number": _one(shape=2),
    "a negative size": _one(shape=[-2]),
    "a size that is true": _one(shape=[True, 2]),
    "a fraction": _one(shape=[2.0]),
    "a huge shape": _one(shape=[1 << 62, 1 << 62]),
    "one offset": _one(data_offsets=[8]),
    "offsets backwards": _one(data_offsets=[8, 0]),
    "offsets beyond the file": _one(shape=[4], data_offsets=[0, 16]),
    "a gap before": _one(shape=[1], data_offsets=[4, 8]),
    "bytes behind": _one(shape=[1], data_offsets=[0, 4]),
    "overlap": _with_header(
        {name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for name in ("x", "y")},
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, case: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(DAMAGED[case])
    with pytest.raises(ValueError, match=r"."):
        read(path)


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(save({name: t.contiguous() for name, t in TENSORS.items()}))
    whole = path.read_bytes()
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"."):
            read(path)


# Writes an artefact and an export into the folder sys.argv[1] under the umask sys.argv[2].
WRITER = """
import os, sys
from pathlib import Path
from compressor import huggingface, stored
from tests.conftest import tiny_model, write_artifact
os.umask(int(sys.argv[2], 8))
made = stored.read(write_artifact(Path(sys.argv[1]) / "artefact", tiny_model()))
huggingface.export(stored.gpt2(made), made.tokenizer_json, Path(sys.argv[1]) / "export")
"""


@pytest.mark.parametrize(("umask", "file", "folder"), [
    ("022", 0o644, 0o755), ("027", 0o640, 0o750), ("077", 0o600, 0o700), ("000", 0o644, 0o755),
])  # fmt: skip
def test_an_artefact_and_an_export_follow_the_umask(tmp_path: Path, umask: str, file: int, folder: int) -> None:
    subprocess.run([sys.executable, "-c", WRITER, tmp_path, umask], check=True)
    for made in (tmp_path / "artefact", tmp_path / "export"):
        assert made.stat().st_mode & 0o777 == folder
        modes = {path.name: path.stat().st_mode & 0o777 for path in made.iterdir()}
        assert modes == dict.fromkeys(modes, file)
        assert len(modes) >= 4


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    huggingface.export(tiny_model(), TOKENIZER, folder)
    return folder


# Another user loads the checkpoint, or artefact, in the folder sys.argv[1].
READER = """
import os, sys
from pathlib import Path
from compressor import huggingface, stored
os.chdir(sys.argv[1])
if os.geteuid() == 0:
    os.setegid(65534)
    os.seteuid(65534)
huggingface.load(".") if sys.argv[2] == "checkpoint" else stored.read(Path("."))
"""


@pytest.mark.parametrize("kind", ["checkpoint", "artefact"])
def test_a_file_that_may_not_be_read_says_so(checkpoint: Path, tiny_artifact: Path, tmp_path: Path, kind: str) -> None:
    folder = checkpoint if kind == "checkpoint" else Path(shutil.copytree(tiny_artifact, tmp_path / "artefact"))
    (folder / "model.safetensors").chmod(0)
    folder.chmod(0o755)
    run = subprocess.run([sys.executable, "-c", READER, folder, kind], capture_output=True, text=True, check=False)
    assert "model.safetensors: cannot be read" in run.stderr
    assert os.strerror(errno.EACCES) in run.stderr


def _shard_of(name: str) -> str:
    return json.dumps({"weight_map": {"transformer.wte.weight": name}})


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        (
            "model.safetensors.index.json",
            "missing shard",
            r"^part.safetensors: is missing .*though model.safetensors.index.json names it",
        ),
        ("model.safetensors", "pipe", "is missing"),
        ("model.safetensors.index.json", "folder as shard", r"^part.safetensors: .*directory"),
    ],
)
def test_what_is_wrong_with_a_checkpoints_file_is_said(checkpoint: Path, file: str, damage: str, message: str) -> None:
    (checkpoint / "model.safetensors").unlink()
    if damage == "pipe":
        os.mkfifo(checkpoint / file)
    else:
        (checkpoint / file).write_text(_shard_of("part.safetensors"))
    if damage == "folder as shard":
        (checkpoint / "part.safetensors").mkdir()
    with pytest.raises(CheckpointError, match=message):
        huggingface.load(str(checkpoint))


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        files.opened(tmp_path / "pipe")
    with pytest.raises(OSError, match=r"directory|regular"):
        files.opened(tmp_path)


def test_a_checkpoint_that_changes_while_it_is_compressed_is_in_memory(checkpoint: Path) -> None:
    expected = load_file(checkpoint / "model.safetensors")["transformer.wte.weight"].clone()
    loaded = huggingface.load(str(checkpoint))
    os.truncate(checkpoint / "model.safetensors", 0)  # where it is mapped, the next look at it is SIGBUS
    assert torch.equal(loaded.model.wte.dense(), expected)
