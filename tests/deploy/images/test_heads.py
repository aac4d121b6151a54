"""The commands in the heads of the Dockerfiles, run by the real Docker for root and for any other user."""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from compressor.pages import ROOT
from tests.deploy.dockerfile import dockerfiles
from tests.deploy.images.docker import FOLDER, build_options, docker, wait_healthy
from tests.deploy.test_dockerfile_heads import USERS, commands, reachable, run_as

pytestmark = pytest.mark.images
HUB = "distilgpt2"  # its command needs the network
OWN = "my-gpt2"


@pytest.fixture(params=USERS)
def checkout(request: pytest.FixtureRequest, artifact_image: str, service_image: str) -> Iterator[Path]:
    """The files of this tree, a checkpoint and Docker's configuration, in a folder that belongs to a user."""
    modes = {parent: parent.stat().st_mode for parent in (FOLDER, *FOLDER.parents)}
    folder = reachable(FOLDER) / "checkout"
    shutil.rmtree(folder, ignore_errors=True)
    files = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True)  # noqa: S607
    for name in filter(None, files.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "compressor/reference", folder / OWN)
    if plugins := os.environ.get("DOCKER_CONFIG"):
        shutil.copytree(plugins, folder / ".docker", ignore=lambda *_: {"buildx"})
    for path in (folder, *folder.rglob("*")):
        os.chown(path, request.param, request.param)
    yield folder
    shutil.rmtree(folder)
    for parent, mode in modes.items():
        if parent.stat().st_mode != mode:
            parent.chmod(mode)


@pytest.fixture
def _ended() -> Iterator[None]:
    yield
    docker("rm", "--force", "heads")


def _here(command: str) -> str:
    """Return a command as it can be run beside others: built from the bases at hand, a server in the background."""
    command = command.replace("docker build ", f"docker build {shlex.join(build_options())} ")
    if "--publish" not in command:
        return command
    return command.replace("docker run --rm ", "docker run --detach --name heads ")


@pytest.mark.usefixtures("_ended")
def test_they_work_as_they_are_written(checkout: Path) -> None:
    compressor, service = (commands(path) for path in dockerfiles())
    asked = [command for command in (*compressor, *service) if HUB not in command]
    assert len(asked) == len(compressor) + len(service) - 1
    user, docker_there = checkout.stat().st_uid, Path(shutil.which("docker") or "docker").parent
    ran = run_as([_here(command) for command in asked], checkout, docker_there, user)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    wait_healthy("heads")
    (made,) = (checkout / "models").iterdir()
    assert {path.stat().st_uid for path in made.iterdir()} == {user}
    docker("stop", "--time", "60", "heads")
    assert docker("inspect", "--format", "{{.State.ExitCode}}", "heads") == "0"


def test_one_command_only_needs_a_hub() -> None:
    found = [command for path in dockerfiles() for command in commands(path) if re.search(rf"\b{HUB}\b", command)]
    assert len(found) == 1
