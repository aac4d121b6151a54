"""The images of this tree, built by a Docker daemon: what `make test-images` runs, and nothing else does."""

from collections.abc import Iterator

import pytest

from tests.deploy.images import found
from tests.deploy.images.docker import FOLDER, build, docker, without_daemon

SERVICE, COMPRESSOR, ARTIFACT = "ttgpt-service", "ttgpt-compressor", "ttgpt-artifact"


@pytest.fixture(scope="session", autouse=True)
def daemon(request: pytest.FixtureRequest) -> Iterator[None]:
    """A daemon that answers; what was found is published once all tests are through."""
    if request.config.getoption("markexpr") != "images":
        pytest.skip("not run: `make test-images` builds and runs the images")
    if reason := without_daemon():
        pytest.skip(f"not run: needs a Docker daemon: {reason}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    yield
    found.write()


@pytest.fixture(scope="session")
def service_image(daemon: None) -> str:
    return _built(SERVICE, "docker/service.Dockerfile")


@pytest.fixture(scope="session")
def compressor_image(daemon: None) -> str:
    return _built(COMPRESSOR, "docker/compressor.Dockerfile", "--target", "compressor")


@pytest.fixture(scope="session")
def artifact_image(compressor_image: str) -> str:
    return _built(ARTIFACT, "docker/compressor.Dockerfile")


def _built(tag: str, file: str, *options: str) -> str:
    build("--file", file, *options, "--tag", tag)
    found.record(tag, "image_bytes", int(docker("image", "inspect", "--format", "{{.Size}}", tag)))
    return tag
