"""lm-eval on an export and on the artefact itself: somebody else's code finds our figures.

On an export it is the README's command as it stands, on an artefact the same one with the classes that open it.
"""

import json
import math
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tokenizers import Tokenizer

from compressor import huggingface
from compressor.evaluation import lm_eval as lm_eval_tasks
from compressor.evaluation import questions as tasks
from compressor.formats import Dense
from compressor.gpt2 import GPT2
from compressor.progress import silent
from compressor.runtime.evaluate import Text, evaluate
from compressor.runtime.model import Model
from compressor.runtime.published import form_of, measure
from compressor.runtime.reference import VALIDATION_TEXT
from tests.conftest import TINY, tiny_model, write_artifact
from tests.tolerances import HARNESS

pytestmark = pytest.mark.skipif(
    find_spec("lm_eval") is None or find_spec("accelerate") is None,
    reason="lm-eval is not installed (half a gigabyte): pip install 'ttgpt[eval]'",
)
README = (Path(__file__).parents[2] / "compressor" / "README.md").read_text()
COMMAND = next(line for line in README.splitlines() if line.startswith("lm_eval "))
WITH_CLASSES = ["-c", "import compressor.huggingface, lm_eval.__main__ as harness; harness.cli_evaluate()"]
LAMBADA = "ttgpt_lambada_openai"
TOKENIZER = Tokenizer.from_file(str(huggingface.EMBEDDED_FOLDER / "tokenizer.json"))


def _whole_windows() -> list[int]:
    """Return the ids of a text that fills the model's windows, the beginning-of-text token aside.

    In a last window that is not full, lm-eval gives more context than `evaluate` does.
    """
    ids = TOKENIZER.encode(VALIDATION_TEXT.read_text()).ids[: 24 * TINY.n_positions]
    assert TOKENIZER.encode(TOKENIZER.decode(ids)).ids == ids
    return ids


def _write_lambada(text: str, folder: Path) -> Path:
    """Write passages in OpenAI's form, and lm-eval's own task about them, which would load them from the hub."""
    data = folder / "lambada.jsonl"
    passages = (f"{beginning}{last}" for beginning, last in tasks.passages(text))
    data.write_text("".join(json.dumps({"text": passage}) + "\n" for passage in passages))
    source = files("lm_eval") / "tasks" / "lambada" / "lambada_openai.yaml"
    there = {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": {"test": str(data)}}}
    task = yaml.safe_load(source.read_text()) | there | {"task": LAMBADA}
    (folder / "tasks" / f"{LAMBADA}.yaml").write_text(json.dumps(task))
    return data


def _compressed() -> GPT2:
    model = tiny_model()
    return model.with_matrices({name: Dense.of(form.dense(), "int8") for name, form in model.matrices().items()})


MODELS: dict[str, Callable[[], GPT2]] = {"export": tiny_model, "artefact": _compressed}


@pytest.fixture(scope="module", params=MODELS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def ours(kind: str) -> Model:
    """The model as a server has it."""
    return MODELS[kind]().decoder()


@pytest.fixture(scope="module")
def results(kind: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What lm-eval finds, with the tasks of the README's command made of a shorter text."""
    folder = tmp_path_factory.mktemp("lm_eval")
    model, arguments = MODELS[kind](), shlex.split(COMMAND)
    if kind == "export":
        huggingface.export(model, TOKENIZER.to_str().encode(), folder / "exported")
        command = ["-m", *arguments]
    else:
        write_artifact(folder / "exported", model)
        command = [*WITH_CLASSES, *arguments[1:]]
    (folder / "text.txt").write_text(TOKENIZER.decode(_whole_windows()))
    lm_eval_tasks.write(folder / "text.txt", folder / "tasks")
    _write_lambada((folder / "text.txt").read_text(), folder)
    command = [f"{part},{LAMBADA}" if part.startswith(lm_eval_tasks.TEXT) else part for part in command]
    command = [sys.executable, *command, "--output_path", "results.json"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    run = subprocess.run(
        command, cwd=folder, env=os.environ | offline, capture_output=True, text=True, check=False, timeout=600
    )
    assert run.returncode == 0, run.stderr[-2000:]
    (written,) = folder.glob("results*.json")
    found: dict[str, Any] = json.loads(written.read_text())["results"]
    return found


def test_the_tool_prints_the_command_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert lm_eval_tasks.write(VALIDATION_TEXT, Path("tasks")).replace("DIR", "exported") == COMMAND


def test_bits_per_byte_are_ours(results: dict[str, Any], ours: Model) -> None:
    ids = _whole_windows()
    text = Text("text.txt", "", len(TOKENIZER.decode(ids).encode()), np.array([TINY.eos_token_id, *ids]))
    found = results[lm_eval_tasks.TEXT]
    assert found["bits_per_byte,none"] == pytest.approx(evaluate(ours, None, text).bits_per_byte, rel=HARNESS)
    assert math.log2(found["byte_perplexity,none"]) == pytest.approx(found["bits_per_byte,none"], rel=HARNESS)


def test_lambada_is_counted_alike(results: dict[str, Any], ours: Model, tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    data = _write_lambada(TOKENIZER.decode(_whole_windows()), tmp_path)
    found, expected = measure(ours, None, data, TOKENIZER, form_of(data)), results[LAMBADA]
    assert found["passages"] > 1
    assert found["last_word_accuracy"] == expected["acc,none"]
    assert math.log(found["last_word_perplexity"]) == pytest.approx(math.log(expected["perplexity,none"]), rel=HARNESS)


def test_last_words_are_scored_alike(results: dict[str, Any], ours: Model) -> None:
    questions = tasks.last_words(TOKENIZER.decode(_whole_windows()), TOKENIZER)
    scores = [score for (score,) in tasks._scores(ours, questions, silent)]
    found = results[lm_eval_tasks.LAST_WORD]
    assert found["acc,none"] == sum(all_likeliest for _, all_likeliest in scores) / len(scores)
    mean = sum(score for score, _ in scores) / len(scores)
    assert math.log(found["perplexity,none"]) == pytest.approx(-mean, rel=HARNESS)
