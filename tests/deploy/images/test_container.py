"""A container of the image that has an artefact baked in, with a root that it could write to."""

import json
from collections.abc import Iterator

import pytest

from tests.deploy.images.docker import build, docker, wait_healthy
from tests.e2e import answer

pytestmark = pytest.mark.images
BAKED = "ttgpt-baked"


@pytest.fixture(scope="module")
def container(service_image: str, artifact_image: str) -> Iterator[str]:
    build(
        "--file", "docker/service.Dockerfile", "--target", "baked", "--build-arg", f"ARTIFACT={artifact_image}",
        "--tag", BAKED,
    )  # fmt: skip
    docker("run", "--detach", "--name", BAKED, "--publish", "127.0.0.1::8000", BAKED)
    yield BAKED
    docker("rm", "--force", BAKED)


def test_it_answers_as_the_first_page_says(container: str) -> None:
    wait_healthy(container)
    assert answer.ask(f"http://{docker('port', container, '8000/tcp')}") == answer.read()


def test_it_is_nobodys_root(container: str) -> None:
    assert docker("inspect", "--format", "{{.Config.User}}", container) == "10001:10001"
    assert docker("exec", container, "id", "-u") == "10001"


def test_it_holds_neither_compiler_nor_what_builds(container: str) -> None:
    for program in ("gcc", "cc", "pip"):
        assert docker("exec", container, "sh", "-c", f"command -v {program} || echo none") == "none"
    packages = json.loads(docker("exec", container, "python", "-c", _PACKAGES))
    assert {"numpy", "fastapi", "ttgpt"} <= set(packages)
    assert not {"torch", "transformers", "huggingface-hub", "pip"} & set(packages)


def test_nothing_was_written(container: str) -> None:
    assert docker("diff", container) == ""


_PACKAGES = "import importlib.metadata as m, json; print(json.dumps([d.name for d in m.distributions()]))"
