"""The command line as a user meets it: as a process."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from compressor import huggingface
from compressor.methods import METHODS
from compressor.runtime.load import load
from tests.compressor.command import refused


def ttgpt(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "compressor", *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"}, check=False)
    told = [line for line in run.stderr.splitlines(keepends=True) if line.endswith(" to go\n")]  # by a slow machine
    run.stderr = "".join(line for line in run.stderr.splitlines(keepends=True) if line not in told)
    return run


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "story.txt"
    path.write_text("The tide was out, and the boats leaned upon the hard. " * 5)
    return path


@pytest.fixture(scope="module")
def compressed(checkpoint: Path, text: Path) -> Path:
    out = checkpoint.parent / "compressed"
    run = ttgpt("compress", checkpoint, "--method", "tensorgpt", "--rank", "2", "--out", out, "--text", text)
    assert (run.returncode, run.stderr) == (0, "")
    assert "smaller than fp32" in run.stdout
    return out


def test_every_method_makes_an_artefact_that_loads(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    for method in METHODS:
        arguments = ["--rank", "2"] if "rank" in METHODS[method].config.__dataclass_fields__ else []
        run = ttgpt("compress", checkpoint, "--method", method, "--out", tmp_path / method, "--text", text, *arguments)
        assert (run.returncode, run.stderr) == (0, "")
        assert load(tmp_path / method)[0].manifest.provenance.method == method


def test_rest_stores_what_the_method_leaves_alone(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "svd-int8"
    run = ttgpt("compress", checkpoint, "--method", "svd", "--rank", 4, "--rest", "int8", "--out", out, "--text", text)
    assert run.returncode == 0
    codecs = {name: set(spec.codecs.values()) for name, spec in load(out)[0].specs.items()}
    assert codecs.pop("wte") == {"fp16"}
    assert set.union(*codecs.values()) == {"int8"}


def test_inspect_prints_one_json_object(compressed: Path) -> None:
    run = ttgpt("inspect", compressed, "--json")
    assert (run.returncode, run.stderr) == (0, "")
    printed = json.loads(run.stdout)
    manifest = load(compressed)[0].manifest
    assert printed["weight_bytes"] == manifest.weight_bytes
    assert printed["digest"] == manifest.digest
    assert printed["matrices"]["wte"]["format"] == "token_mps"
    assert ttgpt("inspect", compressed).returncode == 0


def test_evaluate_prints_one_json_object(compressed: Path, checkpoint: Path, text: Path, tmp_path: Path) -> None:
    alone = ttgpt("evaluate", compressed, "--text", text, "--json")
    assert alone.returncode == 0
    assert "give one by --dense" in alone.stderr
    assert json.loads(alone.stdout)["kl"] is None
    dense = tmp_path / "dense"
    assert ttgpt("compress", checkpoint, "--method", "dense", "--out", dense, "--text", text).returncode == 0
    printed = json.loads(ttgpt("evaluate", compressed, "--dense", dense, "--text", text, "--json").stdout)
    quality = load(compressed)[0].manifest.quality
    assert printed["perplexity"] == pytest.approx(quality.perplexity, rel=1e-5)
    assert printed["kl"] == pytest.approx(quality.kl, rel=1e-3)
    assert printed["weight_bytes"] == load(compressed)[0].manifest.weight_bytes


def test_generate_prints_only_the_text_and_a_seed_repeats_it(compressed: Path) -> None:
    arguments = ["generate", compressed, "--prompt", "The old man", "--max-new-tokens", 8, "--temperature", 1]
    first, again = ttgpt(*map(str, arguments)), ttgpt(*map(str, arguments))
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout.startswith("The old man")
    assert first.stdout == again.stdout


def test_generate_writes_the_same_with_a_draft(checkpoint: Path, compressed: Path, text: Path, tmp_path: Path) -> None:
    dense, grown = tmp_path / "dense", tmp_path / "grown"
    assert ttgpt("compress", checkpoint, "--method", "dense", "--out", dense, "--text", text).returncode == 0
    arguments = ["generate", dense, "--prompt", "The old man", "--max-new-tokens", 40, "--temperature", 1]
    plain, found = ttgpt(*arguments), ttgpt(*arguments, "--draft", compressed)
    assert (found.returncode, found.stderr, found.stdout) == (0, "", plain.stdout)
    shutil.copytree(compressed, grown)
    assert ttgpt("vocab", "add", grown, "--token", " ttgpt", "--like", " ship").returncode == 0
    refused = ttgpt(*arguments, "--draft", grown)
    assert (refused.returncode, refused.stderr) == (
        2,
        f"error: draft: {grown} must have the tokenizer and vocabulary of dense\n",
    )


def test_export_is_read_again(compressed: Path, tmp_path: Path) -> None:
    assert ttgpt("export", compressed, "--out", tmp_path / "dense").returncode == 0
    assert huggingface.load(str(tmp_path / "dense")).model.config == load(compressed)[1].config


def test_the_version_is_printed() -> None:
    run = ttgpt("--version")
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith("ttgpt ")


def test_a_ratio_is_kept_and_the_plan_is_printed(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "budget"
    words = tmp_path / "words.txt"
    words.write_text("The tide was out, and the boats leaned upon the hard; nobody had painted them. " * 200)
    arguments = ["compress", checkpoint, "--ratio", 6, "--calibration-text", words, "--text", text, "--out", out]
    run = ttgpt(*arguments, "--heal-tokens", 4096, "--heal-folder", tmp_path / "healing")
    assert (run.returncode, run.stderr) == (0, "")
    assert "next step up" in run.stdout
    manifest = load(out)[0].manifest
    assert manifest.dense_bytes / manifest.weight_bytes >= 6
    made = manifest.provenance.config
    assert {row["piece"].partition("[")[0] for row in made["plan"]} == load(out)[0].specs.keys()
    assert made["heal"]["kl_after"] <= made["heal"]["kl_before"]
    assert made["calibration"] == ["words.txt"]


MISTAKES = {
    "two plans": (
        ["compress", "{checkpoint}", "--method", "dense", "--ratio", "4", "--out", "{new}"],
        "ratio does not go with method",
    ),
    "two budgets": (
        ["compress", "{checkpoint}", "--budget", "8MB", "--ratio", "4", "--out", "{new}"],
        "exactly one of --method, --preset, --budget, --ratio, --max-perplexity-ratio",
    ),
    "unknown preset": (
        ["compress", "{checkpoint}", "--preset", "huge", "--out", "{new}"],
        "preset must be one of quality, balanced, small, tiny, not 'huge'",
    ),
    "no size": (
        ["compress", "{checkpoint}", "--budget", "8 parsecs", "--out", "{new}"],
        "budget must be a number of B, kB, MB or GB such as 8MB",
    ),
    "a method's option without it": (
        ["compress", "{checkpoint}", "--ratio", "4", "--rank", "2", "--out", "{new}"],
        "rank does not go with a budget",
    ),
    "unknown executor": (
        ["compress", "{checkpoint}", "--ratio", "4", "--executor", "dask", "--out", "{new}"],
        "executor must be one of local, ray, not 'dask'",
    ),
    "no workers": (
        ["compare", "--workers", "0"],
        "workers must be between 1 and 256, not 0",
    ),
    "workers without a budget": (
        ["compress", "{checkpoint}", "--method", "dense", "--workers", "2", "--out", "{new}"],
        "workers does not go with method",
    ),
    "existing tasks": (["lm-eval-task", "--out", "{compressed}"], "out: {compressed} exists already"),
    "no text to ask about": (["lm-eval-task", "--text", "nowhere.txt", "--out", "{new}"], "text: cannot read"),
    "unknown target": (
        ["compress", "{checkpoint}", "--method", "svd", "--target", "head", "--out", "{new}"],
        "target must be one of",
    ),
    "unknown method": (["compress", "{checkpoint}", "--method", "magic", "--out", "{new}"], "method must be one of"),
    "unknown model": (["compress", "./nowhere", "--method", "dense", "--out", "{new}"], "model: there is no folder"),
    "illegal rank": (
        ["compress", "{checkpoint}", "--method", "svd", "--rank", "0", "--out", "{new}"],
        "rank must be at least 1, not 0",
    ),
    "rank too large": (
        ["compress", "{checkpoint}", "--method", "svd", "--rank", "33", "--out", "{new}"],
        "rank must be between 1 and 32, not 33",
    ),
    "another method's option": (
        ["compress", "{checkpoint}", "--method", "quantize", "--rank", "3", "--out", "{new}"],
        "rank is not an option of quantize",
    ),
    "not a number": (
        ["compress", "{checkpoint}", "--method", "svd", "--rank", "many", "--out", "{new}"],
        "--rank",
    ),
    "unknown codec": (
        ["compress", "{checkpoint}", "--method", "quantize", "--codec", "int1", "--out", "{new}"],
        "codec must be one of",
    ),
    "existing folder": (["compress", "{checkpoint}", "--method", "dense", "--out", "{compressed}"], "--force"),
    "no plan": (["compress", "{checkpoint}", "--out", "{new}"], "--method"),
    "unknown option": (["inspect", "{compressed}", "--magic"], "--magic"),
    "unknown command": (["conjure"], "conjure"),
    "no artefact": (["inspect", "./nowhere"], "no such artefact"),
    "no text": (["evaluate", "{compressed}", "--text", "nowhere.txt"], "text: cannot read nowhere.txt"),
    "illegal temperature": (
        ["generate", "{compressed}", "--prompt", "a", "--temperature", "-1"],
        "temperature must be between 0 and 100",
    ),
    "too many tokens": (
        ["generate", "{compressed}", "--prompt", "a", "--max-new-tokens", "64"],
        "max_new_tokens must be between 0 and 63, not 64",
    ),
    "illegal port": (["serve", "{compressed}", "--port", "70000"], "--port"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(
    case: str, checkpoint: Path, compressed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, message = MISTAKES[case]
    places = {"checkpoint": checkpoint, "compressed": compressed, "new": tmp_path / "new"}
    assert message.format(**places) in refused([argument.format(**places) for argument in arguments], capsys)
    assert not (tmp_path / "new").exists()


def test_a_damaged_artefact_is_one_line_and_exit_code_2(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "damaged"
    assert ttgpt("compress", checkpoint, "--method", "dense", "--out", out, "--text", text).returncode == 0
    weights = out / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    for command in (["inspect"], ["evaluate"], ["generate", "--prompt", "a"], ["export", "--out", "x"]):
        run = ttgpt(command[0], out, *command[1:])
        assert run.returncode == 2
        assert run.stderr.startswith("error: model.safetensors: sha256: ")
        assert len(run.stderr.splitlines()) == 1
