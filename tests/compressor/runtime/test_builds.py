"""The runtime's C by other compilers, under sanitizers and on another processor: no warnings, and the same answers."""

import itertools
import pickle
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import torch

from compressor.artifact.gpt2_config import Activation, GPT2Config
from compressor.formats import Dense, Format
from compressor.runtime._decoder import INSTRUCTIONS
from compressor.tensors import array
from tests.cases import CODECS, FORMAT_CASES, format_case
from tests.compressor.runtime.replay import Case, Draws, Products, Steps, Stored, Verdicts, plain
from tests.conftest import TINY, tiny_model
from tests.tools import debian_program, not_run, python_headers

ROOT = Path(__file__).parents[3]
(EXTENSION,) = (
    module
    for module in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["ext-modules"]
    if module["name"] == "compressor.runtime._decoder"
)
ARM = "aarch64-linux-gnu"
ARM_ROOT = ROOT / "build" / ARM  # where .ci/run puts Python and numpy


def stored(form: Format) -> Stored:
    return {name: array(tensor) for name, tensor in form.tensors().items()}, plain(form.spec())


def products(form: Format, rows: int, activations: int = 16) -> Products:
    """Return a case with rows of x from very small to very large ones."""
    x = np.random.default_rng(rows).standard_normal((rows, form.in_features), np.float32)
    return Products(stored(form), x * np.logspace(-30, 30, rows, dtype=np.float32)[:, np.newaxis], activations)


def steps(config: GPT2Config, first: int) -> Steps:
    """Return a decoder whose matrices are stored by one codec after another."""
    model, codecs = tiny_model(config), itertools.cycle(CODECS[first:] + CODECS[:first])
    matrices = {name: stored(form.recoded(next(codecs))) for name, form in model.matrices().items()}
    vectors = {name: array(vector.decode()) for name, vector in model.vectors().items()}
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (3, config.n_positions))
    return Steps(SimpleNamespace(**vars(config)), matrices, vectors, tokens, 8 if first % 2 else 16)


def verdicts(columns: int) -> Verdicts:
    logits, reference = np.random.default_rng(columns).normal(0, 9, (2, 21, columns)).astype(np.float32)
    return Verdicts(logits, reference, np.arange(21) % columns)


def written(path: Path, cases: Iterable[Case]) -> Path:
    """Write cases with their answers by one thread of this CPU's best instructions."""
    path.write_bytes(pickle.dumps([(case, list(case.answers(1, INSTRUCTIONS[-1]))) for case in cases]))
    return path


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Matrices that are large enough for several threads, by every codec, some of every format, and decoders."""
    large = [products(Dense.of(torch.randn(33, 1100), codec), 131, bits) for codec in CODECS for bits in (16, 8)]
    forms = [products(format_case(name, "int8"), 40) for name in FORMAT_CASES if "many-rows" not in name]
    odd = replace(TINY, vocab_size=700, n_embd=36, n_head=3, n_inner=80)
    decoders = [steps(replace(odd, activation_function=name), first) for first, name in enumerate(get_args(Activation))]
    judged = [verdicts(columns) for columns in (1, 15, 2500)]
    drawn = [Draws(case.logits) for case in judged]
    return written(tmp_path_factory.mktemp("replay") / "shared", [*large, *forms, *decoders, *judged, *drawn])


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every format by every codec."""
    forms = (products(format_case(*row), 21) for row in itertools.product(FORMAT_CASES, CODECS))
    return written(tmp_path_factory.mktemp("replay") / "every", forms)


def build(site: Path, *compiler: str) -> Path:
    """Return a folder with the runtime, its extension built by another compiler without a warning."""
    for room in ("artifact", "runtime"):
        shutil.copytree(ROOT / "compressor" / room, site / "compressor" / room, ignore=shutil.ignore_patterns("*.so"))
    shutil.copy(ROOT / "compressor/__init__.py", site / "compressor")
    flags = ["-fPIC", "-Wall", "-Wextra", "-Werror", "-I", str(python_headers())]

    def compiled(source: str) -> Path:
        to = site / Path(source).with_suffix(".o").name
        subprocess.run([*compiler, *flags, "-c", ROOT / source, "-o", to], check=True)
        return to

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, reversed(EXTENSION["sources"])))  # the largest first
    extension = site / "compressor/runtime/_decoder.abi3.so"
    subprocess.run([*compiler, "-shared", *objects, "-lm", "-o", extension], check=True)
    return site


def replay(site: Path, cases: Iterable[Path], *python: str, packages: str = "", **environment: str) -> None:
    """Let the runtime in `site` compute all cases again."""
    code = "import sys; from tests.compressor.runtime.replay import main; main(sys.argv[1:])"
    variables = {"PYTHONPATH": f"{site}:{ROOT}:{packages}"} | environment
    run = subprocess.run([*python, "-c", code, *cases], cwd=site, env=variables, capture_output=True, check=False)
    assert run.returncode == 0, run.stderr.decode()[-20000:]


def sanitized(site: Path, sanitizers: str, library: str, cases: Iterable[Path]) -> None:
    gcc = debian_program("gcc", "gcc")
    find = subprocess.run([gcc, f"-print-file-name={library}"], capture_output=True, text=True, check=True)
    if not Path(found := find.stdout.strip()).is_absolute():
        not_run(f"{library}, on Debian from the package libgcc-dev of this gcc")
    flags = ["-O1", "-g1", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
    options = {
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "TSAN_OPTIONS": "halt_on_error=1",
    }
    build(site, gcc, *EXTENSION["extra-compile-args"], *flags)
    replay(site, cases, sys.executable, LD_PRELOAD=found, PYTHONMALLOC="malloc", **options)


def test_no_access_outside_and_no_undefined_behaviour(every: Path, shared: Path, tmp_path: Path) -> None:
    sanitized(tmp_path, "address,undefined", "libasan.so", [every, shared])


def test_no_race(shared: Path, tmp_path: Path) -> None:
    sanitized(tmp_path, "thread", "libtsan.so", [shared])


def test_aarch64(every: Path, shared: Path, tmp_path: Path) -> None:
    gcc, qemu = debian_program(f"{ARM}-gcc", f"gcc-{ARM}"), debian_program("qemu-aarch64", "qemu-user")
    python = next(ARM_ROOT.glob("usr/bin/python3*"), None)
    if not python:
        not_run(f"Python and numpy in build/{ARM}, where .ci/run puts them")
    build(tmp_path, gcc, *EXTENSION["extra-compile-args"])
    libraries = f"{ARM_ROOT}/usr/lib/{ARM}:{ARM_ROOT}/lib/{ARM}"
    command, home = [qemu, "-L", f"/usr/{ARM}", str(python)], f"{ARM_ROOT}/usr"
    replay(tmp_path, [every, shared], *command, packages=str(ARM_ROOT), LD_LIBRARY_PATH=libraries, PYTHONHOME=home)


def test_clang_builds_the_same(shared: Path, tmp_path: Path) -> None:
    replay(
        build(tmp_path, debian_program("clang", "clang"), *EXTENSION["extra-compile-args"]), [shared], sys.executable
    )
