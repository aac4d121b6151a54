"""The commands in the heads of the Dockerfiles work as they are written, for root and for any other user.

A stand-in for Docker checks what the real one would do with them; `make test-images` has the real one run them.
"""

import os
import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.deploy.dockerfile import dockerfiles, stages
from tests.deploy.manifests import ROOT

USERS = sorted({os.geteuid(), 1000} if os.geteuid() == 0 else {os.geteuid()})
# Docker makes the host's side of a volume root's if it is missing, and nobody else could write there.
STAND_IN = """#!/bin/sh
printf '%s\\n' "$*" >> "$LOG"
user=10001
while test $# -gt 0; do
  case "$1" in
    --user) user="${2%%:*}" ;;
    --volume)
      folder="${2%%:*}"
      test -d "$folder" || { echo "Docker would make $folder root's"; exit 1; }
      case "$2" in *:ro) shift; continue ;; esac
      test "$(stat -c %u "$folder")" = "$user" || { echo "user $user cannot write to $folder"; exit 1; }
  esac
  shift
done
"""


def commands(path: Path) -> list[str]:
    """Return the commands of a Dockerfile's head: its comments that are indented."""
    head = path.read_text().partition("\nARG ")[0]
    return re.findall(r"^# {3}(.+)$", head, re.MULTILINE)


COMMANDS = [command for path in dockerfiles() for command in commands(path)]


def _options(command: str, name: str) -> list[str]:
    words = shlex.split(command)
    return [words[i + 1] for i, word in enumerate(words) if word == name]


def test_there_are_some_for_every_image() -> None:
    for path in dockerfiles():
        assert {"docker build", "docker run"} <= {" ".join(command.split()[:2]) for command in commands(path)}


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("docker build ")])
def test_what_they_build_exists(command: str) -> None:
    (file,) = _options(command, "--file")
    found = stages(Path(file).name.removesuffix(".Dockerfile"))
    assert set(_options(command, "--target")) <= found.keys()
    declared = {argument.partition("=")[0] for stage in found.values() for argument in stage.every("ARG")}
    text = (ROOT / file).read_text()
    for given in _options(command, "--build-arg"):
        name = given.partition("=")[0]
        assert name in declared or f"\nARG {name}=" in text
    assert {given.partition("=")[0] for given in _options(command, "--build-context")} <= found.keys()
    assert len(_options(command, "--tag")) == 1
    assert shlex.split(command)[-1] == "."


def run_as(lines: Sequence[str], folder: Path, programs: Path, user: int) -> "subprocess.CompletedProcess[str]":
    """Run commands one after the other in a folder, as a user."""
    environment = {"PATH": f"{programs}:/usr/local/bin:/usr/bin:/bin", "LOG": str(folder / "log"), "HOME": str(folder)}
    environment |= {name: value for name, value in os.environ.items() if name == "DOCKER_HOST"}
    script = "set -eu\n" + "\n".join(lines)
    who = {} if user == os.geteuid() else {"user": user, "group": user, "extra_groups": []}
    run = ["/bin/sh", "-c", script]
    return subprocess.run(run, cwd=folder, env=environment, capture_output=True, text=True, check=False, **who)  # type: ignore[call-overload, no-any-return]


def reachable(folder: Path) -> Path:
    """Let every user pass through our folders to this one."""
    for parent in (folder, *folder.parents):
        if parent.stat().st_uid == os.geteuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o011)
    return folder


@pytest.fixture(params=USERS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, int]:
    """An empty folder that belongs to a user."""
    folder = reachable(tmp_path) / "work"
    folder.mkdir()
    os.chown(folder, request.param, -1)
    return folder, request.param


def test_who_runs_them_can_write_what_they_write(place: tuple[Path, int]) -> None:
    folder, user = place
    programs = folder.parent / "bin"
    programs.mkdir()
    (programs / "docker").write_text(STAND_IN)
    (programs / "docker").chmod(0o755)
    ran = run_as(COMMANDS, folder, programs, user)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    assert (folder / "models").stat().st_uid == user
    log = (folder / "log").read_text().splitlines()
    assert len(log) == sum(command.startswith("docker ") for command in COMMANDS)


def test_what_is_compressed_is_what_is_served(place: tuple[Path, int]) -> None:
    (made,) = (_options(command, "--out") for command in COMMANDS if "--out" in command)
    assert made == [stages("service")[""].pairs("ENV")["TTGPT_MODELS"]]
