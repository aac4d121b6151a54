"""A checkpoint to be damaged or rewritten."""

import json
from pathlib import Path

import pytest

from compressor import huggingface
from tests.conftest import TOKENIZER, tiny_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dense checkpoint in Hugging Face's layout."""
    huggingface.export(tiny_model(), TOKENIZER, tmp_path / "tiny")
    return tmp_path / "tiny"


def edit(folder: Path, **changes: object) -> None:
    """Change fields of its config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
