"""The first page's question, asked of the real int8 model over HTTP."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from compressor import huggingface
from compressor.experiments.compression import SAMPLE_TOKENS, sample
from compressor.pages import ROOT
from compressor.recipes.build import build
from compressor.recipes.context import Context
from compressor.recipes.plans import Recipe
from compressor.runtime.evaluate import GOLDEN_PROMPT
from compressor.runtime.load import load
from tests.e2e import answer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "gpt2-mini-int8"
    context = Context(checkpoint=huggingface.load("gpt2-mini"))
    build(context, Recipe(method="quantize", options={}), out)
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


def test_the_answer_of_the_first_page_is_the_one_that_is_served(url: str) -> None:
    given = answer.ask(url)
    assert given == answer.ask(url)  # the same seed, the same text
    assert {"the", "and"} & set(given["generated_text"].split())
    assert given == answer.read(), "run: python -m tests.e2e.answer models/gpt2-mini-int8"


def test_make_serve_asks_the_same_question() -> None:
    makefile = (ROOT / "Makefile").read_text().replace('\\"', '"')
    assert f"-d '{json.dumps(answer.QUESTION, separators=(',', ':'))}'" in makefile


def test_the_greedy_answer_is_the_one_of_the_model_in_process(folder: Path, url: str) -> None:
    loaded, model = load(folder)
    body = {"inputs": GOLDEN_PROMPT, "parameters": {"max_new_tokens": SAMPLE_TOKENS}}
    response = httpx.post(f"{url}/generate", json=body, timeout=60)
    assert response.json()["generated_text"] == sample(model, loaded.tokenizer)


def test_metrics_say_what_was_saved_and_what_it_cost(folder: Path, url: str) -> None:
    manifest = load(folder)[0].manifest
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    values = {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}
    disk = [v for name, v in values.items() if name.startswith("ttgpt_model_weight_bytes{") and 'form="disk"' in name]
    assert sum(disk) == manifest.weight_bytes
    perplexity = [v for name, v in values.items() if 'metric="perplexity",' in name]
    assert perplexity == [pytest.approx(manifest.quality.perplexity)]
