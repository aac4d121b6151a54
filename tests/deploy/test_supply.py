"""What the service's image is made of: locked by hashes, complete, listed; and wheels for every Linux."""

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.deploy.dockerfile import stages
from tests.deploy.manifests import ROOT
from tests.tools import not_run

PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
LOCK = (ROOT / "docker/service.lock").read_text()
ENTRY = re.compile(r"^(\S+)==(\S+) ; (.+?)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)\n", re.MULTILINE)
LOCKED = {name: (Version(number), Marker(marker)) for name, number, marker, _ in ENTRY.findall(LOCK)}
LEFT_OUT = {Requirement(line).name for line in PYPROJECT["tool"]["uv"]["override-dependencies"]}
PYTHON = {"python_full_version": "3.11.13", "python_version": "3.11", "sys_platform": "linux"}
MACHINES = pytest.mark.parametrize("machine", ["x86_64", "aarch64"])


def _supplied(module: str) -> None:
    if find_spec(module) is None:
        not_run(f"{module} from pip install '.[supply]'")


def test_every_entry_has_a_version_and_hashes_and_nothing_else_is_there() -> None:
    assert ENTRY.sub("", LOCK) == ""
    assert "://" not in LOCK
    assert len(LOCKED) == len(ENTRY.findall(LOCK)) > 20


@MACHINES
def test_the_lock_is_what_the_service_needs(machine: str) -> None:
    """All of it, in versions that everything in it is content with, and nothing more; `make lock` makes it anew.

    What a package needs is known of the installed version only, so no further than that is followed.
    """
    todo = [(line, "") for line in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["service"]]]
    environment = {**PYTHON, "platform_system": "Linux", "platform_machine": machine}
    held = {name for name, (_, marker) in LOCKED.items() if marker.evaluate(environment)}
    seen: set[tuple[str, str]] = set()
    differ: set[str] = set()
    while todo:
        line, extra = todo.pop()
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({**environment, "extra": extra}):
            continue
        name = canonicalize_name(wanted.name)
        if name in LEFT_OUT:
            continue
        assert name in held, "run: make lock"
        assert wanted.specifier.contains(LOCKED[name][0], prereleases=True), f"{line}; run: make lock"
        for chosen in {"", *wanted.extras} - {extra for known, extra in seen if known == name}:
            seen.add((name, chosen))
            if Version(version(name)) == LOCKED[name][0]:
                todo += [(further, chosen) for further in requires(name) or ()]
            else:
                differ.add(name)
    assert differ or held == {name for name, _ in seen}


def test_the_image_installs_the_lock() -> None:
    (install,) = (run for run in stages("service")["build"].every("RUN") if "service.lock" in run)
    assert "install --no-deps --require-hashes --requirement service.lock" in install
    assert {"huggingface-hub"} == LEFT_OUT


def test_the_list_of_parts_is_the_lock(tmp_path: Path) -> None:
    """As `make sbom` makes it."""
    _supplied("cyclonedx_py")
    command = [sys.executable, "-m", "cyclonedx_py", "requirements", "docker/service.lock", "--of", "JSON"]
    run = subprocess.run([*command, "--output-file", tmp_path / "sbom.json"], cwd=ROOT, check=False)
    assert run.returncode == 0
    parts = json.loads((tmp_path / "sbom.json").read_text())["components"]
    found = {(part["name"], Version(part["version"])) for part in parts}
    assert found == {(name, number) for name, (number, _) in LOCKED.items()}
    assert all(part["externalReferences"][0]["hashes"] for part in parts)


def test_wheels_are_of_one_python_and_run_in_all_later_ones() -> None:
    assert PYPROJECT["tool"]["distutils"]["bdist_wheel"]["py-limited-api"] == "cp311"
    assert PROJECT["requires-python"] == ">=3.11"
    assert {extension["py-limited-api"] for extension in PYPROJECT["tool"]["setuptools"]["ext-modules"]} == {True}


@MACHINES
def test_a_wheel_is_built_for_this_machine(machine: str) -> None:
    _supplied("cibuildwheel")
    command = [sys.executable, "-m", "cibuildwheel", "--print-build-identifiers", "--platform", "linux"]
    run = subprocess.run([*command, "--archs", machine], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.split() == [f"cp311-manylinux_{machine}"]
