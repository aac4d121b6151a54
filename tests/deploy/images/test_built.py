"""The images can be built. First of all files here, so that each build is in a test of its own."""

import pytest

pytestmark = pytest.mark.images


@pytest.mark.parametrize("image", ["service_image", "compressor_image", "artifact_image"])
def test_it_is_built(image: str, request: pytest.FixtureRequest) -> None:
    assert request.getfixturevalue(image).startswith("ttgpt-")
