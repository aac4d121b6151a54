"""The README's question, asked of the real int8 model over HTTP."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from compressor import huggingface
from compressor.experiments.runner import sample
from compressor.recipes.build import build
from compressor.recipes.context import Context
from compressor.recipes.plans import Recipe
from compressor.runtime import artifact

README = (Path(__file__).parents[2] / "README.md").read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "gpt2-mini-int8"
    build(Context(checkpoint=huggingface.load("gpt2-mini")), Recipe(method="quantize", options={}), out)
    return out


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "service", str(folder), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        found = ""
        for line in process.stderr:
            event = json.loads(line)
            found = event.get("url", found)
            if event["event"] == "ready":
                break
        yield found
        process.terminate()
        assert process.wait(timeout=60) == 0


def test_the_readmes_question_is_answered_in_english(folder: Path, url: str) -> None:
    question = re.search(r"-d '(\{.*\})'", README)
    assert question is not None
    response = httpx.post(f"{url}/generate", json=json.loads(question[1]), timeout=60)
    assert response.status_code == 200
    text = response.json()["generated_text"]
    loaded = artifact.read(folder)
    assert text == sample(loaded.model.prepared(), loaded.tokenizer)
    assert {"the", "and"} & set(text.split())


def test_metrics_say_what_was_saved_and_what_it_cost(folder: Path, url: str) -> None:
    manifest = artifact.read(folder).manifest
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    values = {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}
    disk = [v for name, v in values.items() if name.startswith("ttgpt_model_weight_bytes{") and 'form="disk"' in name]
    assert sum(disk) == manifest.weight_bytes
    perplexity = [v for name, v in values.items() if 'metric="perplexity",' in name]
    assert perplexity == [pytest.approx(manifest.quality.perplexity)]
