"""Checkpoints that several suites share."""

from pathlib import Path

import pytest

from compressor import huggingface
from tests.conftest import TOKENIZER, tiny_model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense checkpoint in Hugging Face's layout, of the module."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    huggingface.export(tiny_model(), TOKENIZER, folder)
    return folder
