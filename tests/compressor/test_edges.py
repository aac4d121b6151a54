"""Edges of what may be asked for: every bound that is named holds, and no number passes that means nothing."""

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from compressor import huggingface, stored
from compressor.artifact.gpt2_config import GPT2Config
from compressor.cli import main
from compressor.gpt2 import GPT2
from compressor.methods import METHODS
from compressor.methods.base import is_target
from compressor.progress import silent
from compressor.recipes import budget
from compressor.recipes.pieces import Choice
from compressor.recipes.search import Search
from tests.compressor.command import refused
from tests.conftest import TOKENIZER, tiny_model, write_artifact

SHAPE = GPT2Config(vocab_size=60, n_positions=16, n_embd=16, n_layer=1, n_head=2, n_inner=32, eos_token_id=0)
IDS = torch.randint(60, (8, 16), generator=torch.Generator().manual_seed(0))
TEXT = "The tide was out, and the boats leaned upon the hard. "
Measured = dict[str, list[Choice]]


@pytest.fixture(scope="module")
def dense() -> GPT2:
    return tiny_model(SHAPE).expanded()


@pytest.fixture(scope="module")
def measured(dense: GPT2) -> Measured:
    return Search(dense=dense, ids=IDS).estimates


def _of(measured: Measured, target: Any) -> Measured:
    return {name: choices for name, choices in measured.items() if is_target(choices[0].piece.matrix, target)}


def _bytes(dense: GPT2, bought: tuple[dict[str, Choice], str], target: str) -> int:
    chosen, vectors = bought
    matrices = sum(choice.size_bytes for choice in chosen.values())
    return matrices + (budget.vector_bytes(dense, vectors) if target == "all" else 0)


@pytest.mark.parametrize("vectors", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("target", ["all", "embedding", "linears", "qkv"])
def test_the_bound_that_a_refusal_names_is_kept_and_nothing_below_it(
    dense: GPT2, measured: Measured, target: Any, vectors: str
) -> None:
    measured, dense = _of(measured, target), dense.with_vectors(vectors)
    with pytest.raises(ValueError, match=r"budget must be at least (\d+) bytes, not 1$") as refused:
        budget.choose(measured, budget.Config(size_bytes=1, target=target), dense)
    least = int(re.findall(r"\d+", str(refused.value))[0])
    at_least = budget.Config(size_bytes=least, target=target)
    assert _bytes(dense, budget.choose(measured, at_least, dense), target) == least
    with pytest.raises(ValueError, match=f"budget must be at least {least} bytes"):
        budget.choose(measured, budget.Config(size_bytes=least - 1, target=target), dense)
    with pytest.raises(ValueError, match=rf"ratio must be at most [\d.]+ \({least} bytes\)") as refused:
        budget.choose(measured, budget.Config(ratio=1000.0, target=target), dense)
    most = float(re.findall(r"at most ([\d.]+)", str(refused.value))[0])
    budget.choose(measured, budget.Config(ratio=most, target=target), dense)
    with pytest.raises(ValueError, match=f"ratio must be at most {most}"):
        budget.choose(measured, budget.Config(ratio=most + 0.02, target=target), dense)


@pytest.mark.parametrize("target", ["all", "embedding"])
def test_a_ratio_and_the_equal_budget_buy_the_same(dense: GPT2, measured: Measured, target: Any) -> None:
    measured, whole = _of(measured, target), budget.dense_bytes(dense, target)

    def outcome(config: budget.Config) -> Any:
        try:
            return budget.choose(measured, config, dense.with_vectors("fp16"))
        except ValueError as error:
            return re.findall(r"(\d+) bytes", str(error))

    for ratio in (1.0, 2.0, 4.0, 6.0, 8.0, 11.9, 12.0, 12.1, 40.0):
        asked = budget.Config(ratio=ratio, target=target)
        assert outcome(asked) == outcome(budget.Config(size_bytes=int(whole / ratio), target=target))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("edges") / "text.txt"
    path.write_text(TEXT * 100)
    return path


NUMBERS = ["0", "-1", "nan", "inf", "-inf", "1e400", "9" * 40]
COMPRESS = "compress {checkpoint} --text {text} --calibration-text {text} --out {new}"
# Every numeric option: the command that it belongs to, and the numbers above that it takes.
OPTIONS: dict[str, tuple[str, set[str]]] = {
    "--budget": (COMPRESS, set()),
    "--ratio": (COMPRESS, set()),
    "--max-perplexity-ratio": (COMPRESS, set()),
    "--workers": (f"{COMPRESS} --ratio 4", set()),
    "--heal-tokens": (f"{COMPRESS} --method dense", {"0"}),
    "--heal-minutes": (f"{COMPRESS} --method dense", {"0"}),
    "--max-new-tokens": ("generate {artifact} --prompt a", {"0"}),
    "--temperature": ("generate {artifact} --prompt a", {"0"}),
    "--seed": ("generate {artifact} --prompt a --max-new-tokens 1", {"0"}),
    "--port": ("serve {artifact}", {"0"}),
}
# Of methods: what a Config's numbers take of those above, and which take any, since more than there is means all.
TAKEN = {"damping": {"0"}, "seed": {"0"}}
UNBOUNDED = {("tensorgpt", "rank"), ("ttm", "rank")}


def _numeric_options() -> list[tuple[str, str, set[str]]]:
    found = [(option, command, taken) for option, (command, taken) in OPTIONS.items()]
    for method, entry in METHODS.items():
        for field in entry.config.__dataclass_fields__.values():
            if "int" in str(field.type) or "float" in str(field.type):
                taken = TAKEN.get(field.name, set()) | ({"9" * 40} if (method, field.name) in UNBOUNDED else set())
                rank = " --rank 2" if "rank" in entry.config.__dataclass_fields__ and field.name != "rank" else ""
                found.append((f"--{field.name.replace('_', '-')}", f"{COMPRESS} --method {method}{rank}", taken))
    return found


@pytest.mark.parametrize(("option", "command", "taken"), _numeric_options())
def test_a_number_that_means_nothing_is_one_line(
    option: str,
    command: str,
    taken: set[str],
    checkpoint: Path,
    text: Path,
    tiny_artifact: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"checkpoint": checkpoint, "text": text, "new": tmp_path / "new", "artifact": tiny_artifact}
    for number in NUMBERS:
        if number in taken:
            continue
        error = refused([*command.format(**places).split(), f"{option}={number}"], capsys)
        assert option.strip("-").replace("-", "_") in error.replace("-", "_")
        assert not (tmp_path / "new").exists()


MEANINGLESS = {
    "--heal-tokens 1": r"heal_tokens must be between (512) and",
    "--heal-minutes 0.0001": r"heal_minutes must be between (0.01) and",
}


@pytest.mark.parametrize("option", MEANINGLESS)
def test_a_number_too_small_to_do_anything_names_the_least(
    option: str, checkpoint: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = COMPRESS.format(checkpoint=checkpoint, text=text, new=tmp_path / "new").split()
    error = refused([*command, "--method", "quantize", *option.split()], capsys)
    least = re.findall(MEANINGLESS[option], error)
    assert len(least) == 1, error
    with pytest.raises(SystemExit) as code:
        main([*command, "--method", "quantize", option.partition(" ")[0], least[0]])
    assert code.value.code in (0, None), capsys.readouterr().err


def test_a_text_too_short_to_heal_on_is_refused_before_anything_is_made(
    checkpoint: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = tmp_path / "short.txt"
    short.write_text(TEXT * 8)
    command = COMPRESS.format(checkpoint=checkpoint, text=short, new=tmp_path / "new").split()
    error = refused([*command, "--ratio", "4", "--heal-tokens", "512"], capsys)
    assert re.search(r"must have at least 576 tokens to heal on, not \d+\n$", error), error


def test_a_checkpoints_sha256_is_what_sha256sum_prints(checkpoint: Path, tmp_path: Path) -> None:
    def digest(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    assert huggingface.load(str(checkpoint)).source.sha256 == digest(checkpoint / "model.safetensors")
    shutil.copytree(checkpoint, sharded := tmp_path / "sharded")
    tensors = load_file(sharded / "model.safetensors")
    (sharded / "model.safetensors").unlink()
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    where = {name: names[i % 2] for i, name in enumerate(sorted(tensors))}
    for shard in names:
        save_file({name: tensors[name] for name, file in where.items() if file == shard}, sharded / shard)
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    assert huggingface.load(str(sharded)).source.sha256 == {name: digest(sharded / name) for name in names}


def test_an_artefact_is_judged_against_the_embedded_model_by_digest_not_by_name(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    huggingface.export(tiny_model(), TOKENIZER, tmp_path / "gpt2-mini")
    shutil.copytree(huggingface.EMBEDDED_FOLDER, tmp_path / "mine")
    for name, is_known in (("gpt2-mini", False), ("mine", True)):
        out = tmp_path / f"{name}-dense"
        for command in (
            ["compress", str(tmp_path / name), "--method", "dense", "--text", str(text), "--out", str(out)],
            ["evaluate", str(out), "--text", str(text), "--json"],
        ):
            capsys.readouterr()
            with pytest.raises(SystemExit) as code:
                main(command)
            assert code.value.code in (0, None)
        printed = capsys.readouterr()
        assert (json.loads(printed.out)["dense_perplexity"] is not None) == is_known
        assert ("--dense" in printed.err) != is_known


def test_a_vector_stored_worse_than_zeros_is_refused_and_what_would_do_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_model()
    method = METHODS["tensorgpt"]
    config = method.config(rank=2, codec="int2-row")  # type: ignore[call-arg]
    table = method.found("wte", model.matrices()["wte"].dense(), config, None, silent)
    folder = write_artifact(tmp_path / "coarse", model.with_matrices({"wte": table}))
    vector = tmp_path / "vector.json"
    refused = []
    for seed in range(12):
        before = stored.read(folder).manifest.digest
        vector.write_text(json.dumps(torch.randn(32, generator=torch.Generator().manual_seed(seed)).tolist()))
        with pytest.raises(SystemExit) as code:
            main(["vocab", "set", str(folder), "--token", "the", "--vector", str(vector)])
        printed = capsys.readouterr()
        if code.value.code == 2:
            refused.append(printed.err)
            assert stored.read(folder).manifest.digest == before
        else:
            assert float(re.findall(r"relative error of ([\d.]+)%", printed.out)[0]) <= 100
    assert refused
    for error in refused:
        assert len(error.splitlines()) == 1
        assert re.search(r"relative error of \d{3,}\.\d+%, worse than zeros; (int4|int8|fp16) would do", error)
