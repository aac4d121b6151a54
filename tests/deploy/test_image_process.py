"""The service's image as a process: what is installed, its entry point, its environment, and not one byte written."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from packaging.requirements import Requirement

from tests.deploy.dockerfile import ignored, stages
from tests.deploy.manifests import ROOT
from tests.service.conftest import wait_until
from tests.tools import debian_program, python_headers

IMAGE = stages("service")[""]
# No file may grow beyond 512 bytes, even for root and in /tmp: enough for Python to find out which folder is for
# temporary files, and for nothing else.
READ_ONLY = ["sh", "-c", 'ulimit -f 1 && exec "$@"', "sh"]


def _here(command: list[str]) -> list[str]:
    """Return the image's command for this machine's interpreter."""
    assert command[0] == "python"
    return [sys.executable, *command[1:]]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the image's build stage installs of ours, from the files that it copies and with its options."""
    debian_program("gcc", "gcc")
    python_headers()
    context, site = (tmp_path_factory.mktemp(name) for name in ("context", "site"))
    for copy in stages("service")["build"].every("COPY"):
        *sources, target = copy.split()
        for source in sources:
            to = context / target / (Path(source).name if target == "./" else "")
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, to, ignore=ignored)
            else:
                shutil.copy(ROOT / source, to)
    (install,) = (run for run in stages("service")["build"].every("RUN") if "--no-deps ." in run)
    options = install.partition("&&")[0].removeprefix("pip --python /opt/venv/bin/python ").split()
    assert options == ["install", "--no-deps", "."]
    here = ["--quiet", "--no-build-isolation", "--no-index", "--target", str(site)]
    run = subprocess.run([sys.executable, "-m", "pip", *options, *here], cwd=context, capture_output=True, check=False)
    assert run.returncode == 0, run.stderr.decode()
    return site


def _environment(site: Path, **changed: str) -> dict[str, str]:
    """Return the image's environment and nothing else; PYTHONPATH stands for what the image has installed."""
    return IMAGE.pairs("ENV") | {"PYTHONPATH": str(site)} | changed


@contextmanager
def _container(site: Path, artifact: Path, workdir: Path) -> Iterator["subprocess.Popen[str]"]:
    workdir.chmod(0o555)
    environment = _environment(site, TTGPT_MODELS=str(artifact), TTGPT_PORT="0")
    command = [*READ_ONLY, *_here(IMAGE.command("ENTRYPOINT")), *IMAGE.command("CMD")]
    with subprocess.Popen(command, cwd=workdir, env=environment, stderr=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            child.kill()
            workdir.chmod(0o755)


def _is_healthy(site: Path, port: int) -> bool:
    check = _here(IMAGE.healthcheck())
    run = subprocess.run(check, env=_environment(site, TTGPT_PORT=str(port)), capture_output=True, check=False)
    return run.returncode == 0


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    folder = tmp_path / "workdir"
    folder.mkdir()
    return folder


def test_the_build_compiles_the_runtime_and_installs_only_what_serves(site: Path) -> None:
    (runtime,) = (site / "compressor/runtime").glob("_decoder*.so")
    assert runtime.stat().st_size > 0
    assert {path.name for path in site.iterdir() if path.suffix != ".dist-info"} <= {"bin", "compressor", "service"}


def test_it_serves_is_healthy_writes_nothing_and_stops(site: Path, tiny_artifact: Path, workdir: Path) -> None:
    with _container(site, tiny_artifact, workdir) as child:
        assert child.stderr is not None
        url = json.loads(child.stderr.readline())["url"].replace("0.0.0.0", "127.0.0.1")  # noqa: S104
        wait_until(lambda: httpx.get(f"{url}/readyz", timeout=60).status_code == 200, seconds=300)
        body = {"inputs": "The sea", "parameters": {"max_new_tokens": 2}}
        assert httpx.post(f"{url}/generate", json=body, timeout=60).status_code == 200
        port = httpx.URL(url).port
        assert port is not None
        assert _is_healthy(site, port)
        child.send_signal(signal.SIGTERM)
        errors = child.communicate(timeout=300)[1]
    assert child.returncode == 0
    assert "Traceback" not in errors
    assert not _is_healthy(site, port)
    assert os.listdir(workdir) == []


def test_without_an_artefact_it_says_so(site: Path, workdir: Path) -> None:
    with _container(site, workdir / "missing", workdir) as child:
        errors = child.communicate(timeout=300)[1]
    assert child.returncode == 2
    assert "there is no such artefact folder" in errors


def test_ttgpt_says_in_one_line_what_this_image_lacks(site: Path, tiny_artifact: Path, workdir: Path) -> None:
    """The script that pip makes of the entry point, without what only the compressor's extra brings."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    served, compressing = ({Requirement(line).name for line in extras[name]} for name in ("service", "compressor"))
    missing = {name.replace("-", "_"): None for name in compressing - served}
    run_script = "del sys.argv[0]; runpy.run_path(sys.argv[0], None, '__main__')"
    code = f"import sys, runpy; sys.modules.update({missing}); {run_script}"
    command = [sys.executable, "-c", code, str(site / "bin/ttgpt")]
    how: dict[str, Any] = {"env": _environment(site), "cwd": workdir, "capture_output": True, "text": True}
    run = subprocess.run([*command, "compress", "gpt2-mini", "--method", "dense", "--out", "x"], check=False, **how)
    assert (run.returncode, run.stdout) == (2, "")
    (line,) = run.stderr.splitlines()
    assert line.startswith("error: this needs ")
    assert "ttgpt[compressor]" in line
    for asked in (["--help"], ["generate", tiny_artifact, "--prompt", "x"], ["inspect", tiny_artifact]):
        assert subprocess.run([*command, *asked], check=True, **how).stdout


def test_the_limit_on_writing_works(workdir: Path) -> None:
    code = "with open('x', 'w') as file: file.write(1000 * 'y')"
    run = subprocess.run([*READ_ONLY, sys.executable, "-c", code], cwd=workdir, capture_output=True, check=False)
    assert b"File too large" in run.stderr
