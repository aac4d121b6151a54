"""The runtime's C by other compilers, under their sanitizers and on another processor: no warnings, the same answers."""

import itertools
import pickle
import shutil
import subprocess
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from compressor.runtime.formats import Dense, Format
from compressor.runtime.gpt2_config import GPT2Config

from compressor.runtime import native
from compressor.runtime._decoder import ACTIVATIONS, INSTRUCTIONS
from tests.cases import CODECS, FORMAT_CASES, format_case
from tests.compressor.runtime.replay import Case, Products, Steps, Stored, plain
from tests.conftest import tiny_model
from tests.tools import debian_program, not_run, python_headers

ROOT = Path(__file__).parents[3]
ARM = "aarch64-linux-gnu"
ARM_PYTHON = ROOT / "build" / ARM  # what .ci/run puts there
(EXTENSION,) = (
    module
    for module in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["ext-modules"]
    if module["name"] == "compressor.runtime._decoder"
)
REPLAY = "import sys; from tests.compressor.runtime.replay import main; main(sys.argv[1])"


def stored(form: Format) -> Stored:
    return {name: native.array(tensor) for name, tensor in form.tensors().items()}, plain(form.spec())


def products(form: Format, count: int) -> Products:
    x = np.random.default_rng(count).standard_normal((count, form.in_features), np.float32)
    return Products(stored(form), x * np.logspace(-30, 30, count, dtype=np.float32)[:, np.newaxis])


def steps(index: int, activation: str) -> Steps:
    config = GPT2Config(
        vocab_size=700,
        n_positions=64,
        n_embd=36,
        n_layer=2,
        n_head=3,
        n_inner=80,
        eos_token_id=0,
        activation_function=activation,
    )
    model = tiny_model(config)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (3, 42))
    matrices = {
        name: stored(form.recoded(CODECS[(i + index) % len(CODECS)]))
        for i, (name, form) in enumerate(model.matrices().items())
    }
    vectors = {name: native.array(vector.decode()) for name, vector in model.vectors().items()}
    from types import SimpleNamespace

    return Steps(SimpleNamespace(**vars(config)), matrices, vectors, ids)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every format by every codec, larger matrices that several threads share, and decoders; with their answers."""
    made: list[Case] = [products(format_case(*row), 21) for row in itertools.product(FORMAT_CASES, CODECS)]
    made += [products(Dense.of(torch.randn(70, 1100), codec), 131) for codec in CODECS]
    made += [steps(i, a) for i, a in enumerate(ACTIVATIONS)]
    answers = [(case, list(case.answers(1, INSTRUCTIONS[-1]))) for case in made]
    path = tmp_path_factory.mktemp("replay") / "cases"
    path.write_bytes(pickle.dumps(answers))
    return path


def build(site: Path, compiler: list[str]) -> Path:
    """Return a folder with the runtime and its extension, by another compiler."""
    shutil.copytree(ROOT / "compressor/runtime", site / "compressor/runtime", ignore=shutil.ignore_patterns("*.so"))
    shutil.copy(ROOT / "compressor/__init__.py", site / "compressor")
    command = [*compiler, "-fPIC", "-Wall", "-Wextra", "-Werror", "-I", str(python_headers())]

    def compiled(source: str) -> str:
        to = site / Path(source).with_suffix(".o").name
        subprocess.run([*command, "-c", ROOT / source, "-o", to], check=True)
        return str(to)

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, EXTENSION["sources"]))
    out = site / "compressor/runtime/_decoder.abi3.so"
    subprocess.run([*command, "-shared", *objects, "-lm", "-o", out], check=True)
    return site


def replay(site: Path, cases: Path, python: list[str], **environment: str) -> None:
    environment = {"PYTHONPATH": f"{site}:{ROOT}"} | environment
    run = subprocess.run(
        [*python, "-c", REPLAY, cases], cwd=site, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    print(run.stdout)


@pytest.mark.parametrize(("sanitizers", "library"), [("address,undefined", "libasan.so"), ("thread", "libtsan.so")])
def test_sanitizers(sanitizers: str, library: str, cases: Path, tmp_path: Path) -> None:
    gcc = debian_program("gcc", "gcc")
    preload = subprocess.run(
        [gcc, f"-print-file-name={library}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(preload).is_absolute():
        not_run(f"{library}, which comes with gcc")
    flags = [*EXTENSION["extra-compile-args"], "-O0", "-g", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
    site = build(tmp_path, [gcc, *flags])
    import sys

    replay(
        site,
        cases,
        [sys.executable],
        LD_PRELOAD=preload,
        PYTHONMALLOC="malloc",
        ASAN_OPTIONS="detect_leaks=0",
        UBSAN_OPTIONS="print_stacktrace=1",
        TSAN_OPTIONS="halt_on_error=1",
    )


def test_aarch64(cases: Path, tmp_path: Path) -> None:
    gcc, qemu = debian_program(f"{ARM}-gcc", f"gcc-{ARM}"), debian_program("qemu-aarch64", "qemu-user")
    python = next(ARM_PYTHON.glob("usr/bin/python3.*"), None) or not_run(
        "Python for aarch64, as .ci/run puts it into build"
    )
    site = build(tmp_path, [gcc, *EXTENSION["extra-compile-args"]])
    replay(
        site,
        cases,
        [qemu, "-L", f"/usr/{ARM}", str(python)],
        LD_LIBRARY_PATH=f"{ARM_PYTHON}/usr/lib/{ARM}:{ARM_PYTHON}/lib/{ARM}",
        PYTHONHOME=f"{ARM_PYTHON}/usr",
        PYTHONPATH=f"{site}:{ROOT}:{ARM_PYTHON}",
    )
