"""Images are pinned by what Docker says of them, or not at all."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.manifests import ROOT, kubectl

DOCKERFILES = ["docker/service.Dockerfile", "docker/compressor.Dockerfile"]
FILES = [*DOCKERFILES, "docker-compose.yml", "k8s/base/kustomization.yaml"]
NAMES = "python:3.11-slim-bookworm python:3.11-bookworm busybox:1.37 redis:8.2-alpine prom/prometheus grafana/grafana"
DIGEST = re.compile(r"@sha256:[0-9a-f]{64}")
# Says a digest that is made of the last argument's length; "fails" and "lies" are what may go wrong.
DOCKER = """#!/bin/sh
for last; do :; done
echo "$*" >> "$ASKED"
case "$HOW" in
    fails) echo "no such host" >&2; exit 1 ;;
    lies) echo "latest" ;;
    *) printf 'sha256:%064x\\n' "${#last}" ;;
esac
"""


def _pin(folder: Path, how: str) -> "subprocess.CompletedProcess[str]":
    """Pin copies of our files in a folder, where Docker is a stand-in."""
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bin/docker").write_text(DOCKER)
    (folder / "bin/docker").chmod(0o755)
    for name in FILES:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        if not (folder / name).exists():
            (folder / name).write_text((ROOT / name).read_text())
    variables = os.environ | {"PATH": f"{folder / 'bin'}:/usr/bin:/bin", "ASKED": str(folder / "asked"), "HOW": how}
    command = [sys.executable, str(ROOT / "docker/digests.py"), *FILES]
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)


def _texts(folder: Path) -> str:
    return "".join((folder / name).read_text() for name in FILES)


def test_every_image_of_elsewhere_is_pinned(tmp_path: Path) -> None:
    assert _pin(tmp_path, "well").returncode == 0
    asked = [line.split() for line in (tmp_path / "asked").read_text().splitlines()]
    assert {line[-1].removesuffix(":v3.5.0").removesuffix(":12.1.0") for line in asked} == set(NAMES.split())
    assert DIGEST.sub("", _texts(tmp_path)) == DIGEST.sub("", _texts(ROOT))  # nothing else has changed
    images = re.findall(r"(?:_IMAGE=|^FROM |image: (?:\$\{\w+:-)?)([\w./-]+:[\w.@:-]+)", _texts(tmp_path), re.MULTILINE)
    images += [f"redis:{tag}" for tag in re.findall(r"name: redis\n +newTag: (\S+)", _texts(tmp_path))]
    assert len(images) == 9
    for image in images:
        name, _, digest = image.partition("@sha256:")
        assert int(digest, 16) == len(name)


def test_a_pinned_image_is_the_one_that_kubernetes_gets(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "k8s", tmp_path / "k8s")
    assert _pin(tmp_path, "well").returncode == 0
    command = [kubectl(), "kustomize", str(tmp_path / "k8s/base")]
    rendered = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"image: redis:8.2-alpine@sha256:{len('redis:8.2-alpine'):064x}\n" in rendered


def test_make_pins_these_files() -> None:
    assert f"docker/digests.py {' '.join(FILES)}\n" in (ROOT / "Makefile").read_text()


def test_pinning_again_changes_nothing(tmp_path: Path) -> None:
    _pin(tmp_path, "well")
    once = _texts(tmp_path)
    assert _pin(tmp_path, "well").returncode == 0
    assert _texts(tmp_path) == once


@pytest.mark.parametrize(("how", "hint"), [("fails", "no such host"), ("lies", "latest")])
def test_nothing_is_written_where_a_digest_is_not_told(tmp_path: Path, how: str, hint: str) -> None:
    run = _pin(tmp_path, how)
    assert run.returncode == 1
    assert hint in run.stderr
    assert _texts(tmp_path) == _texts(ROOT)
