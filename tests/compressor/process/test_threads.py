"""The threads of the command line do not spin for each other, on whichever way it is started."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCRIPT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["ttgpt"]
CODE = "import sys; from {0} import {1}; sys.argv[0] = 'ttgpt'; {1}()"
STARTS = {
    "ttgpt": ["-c", CODE.format(*SCRIPT.split(":")), "compress", "--help"],
    "python -m compressor": ["-m", "compressor", "compress", "--help"],
    "python -m compressor.experiments": ["-m", "compressor.experiments", "--help"],
}


def _environment(**changes: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    return kept | {"PYTHONPATH": str(ROOT)} | changes


def _spins(start: str, **environment: str) -> str:
    """Return for how many rounds GNU's threads spin, as their library read it when torch brought it."""
    command = [sys.executable, *STARTS[start]]
    env = _environment(OMP_DISPLAY_ENV="verbose", **environment)
    run = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
    found = re.search(r"GOMP_SPINCOUNT = '(.*)'", run.stderr)
    if found is None:
        pytest.skip("torch brings another library of threads than GNU's")
    return found[1]


@pytest.mark.parametrize("start", STARTS)
def test_threads_soon_sleep_however_it_is_started(start: str) -> None:
    assert _spins(start) == "1000"


@pytest.mark.parametrize(
    ("environment", "spins"), [({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "0")]
)
def test_what_the_operator_has_set_stays(environment: dict[str, str], spins: str) -> None:
    assert _spins("python -m compressor", **environment) == spins
