"""Whole runs of `ttgpt pretrain`: text in, artefact out, interrupted anywhere, refused with a reason."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from compressor import stored
from compressor.artifact import folder as artifact
from compressor.cli import main
from compressor.pretraining.build import pretrain
from compressor.pretraining.config import SHIPPED, Config, largest_ttm_rank, parse_config, read_config
from compressor.pretraining.model import initialised, parameter_count
from compressor.pretraining.text import Corpus, read_corpus, rows_of_step
from compressor.pretraining.training import CHECKPOINT, Training
from compressor.recipes import checkpoint
from compressor.storage.run_folder import run_folder
from service.settings import Settings
from tests.compressor.pretraining.test_pretraining import FORMS, SHAPE, config_of
from tests.compressor.storage.test_durable import files_of_at_most
from tests.service.conftest import serving

ROOT = Path(__file__).parents[3]
WORDS = "the old man looked at the sea and the young one did not see a boat there".split()  # noqa: SIM905
Raw = dict[str, Any]


def _sentences(count: int) -> str:
    """Return text in which every word is followed by one of two, so that there is something to learn."""
    order = torch.randint(2, (count,), generator=torch.Generator().manual_seed(0)).tolist()
    place, words = 0, []
    for step in order:
        place = (place + 1 + 3 * step) % len(WORDS)
        words.append(WORDS[place] + ("." if place == 0 else ""))
    return " ".join(words)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "sea.txt"
    path.write_text(_sentences(9000))
    return path


def _raw(**changes: Any) -> Raw:
    small = {"vocab_size": 290, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 4}
    phases = [{"until": 0.5, "context": 16}, {"until": 1, "context": 32}]
    base = {"model": small, "tokens": 64 * 128, "batch_tokens": 128, "phases": phases, "warmup_steps": 5}
    return base | {"learning_rate": 0.01, "validate_every": 16, "checkpoint_every": 16} | FORMS["lpa"] | changes


def _written(folder: Path, raw: Raw) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(raw))
    return path


def _arguments(config: Path, text: Path, out: Path) -> list[str]:
    return ["pretrain", "--config", str(config), "--text", str(text), "--out", str(out)]


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize("form", ["ttm", "lpa", "low-rank", "all-ttm"])
def test_a_pretrained_model_has_learnt_and_is_served(text: Path, tmp_path: Path, form: str) -> None:
    out = tmp_path / form
    config = parse_config(_raw(attention={"kind": "dense"}) | FORMS[form])
    manifest = pretrain(config, [text], out, echo=lambda message: None)
    curve = manifest.provenance.config["curve"]
    assert [point[0] for point in curve] == [0, 2048, 4096, 6144, 8192]
    assert curve[-1][1] < 0.6 * curve[0][1]
    assert manifest.provenance.config["parameters"] == parameter_count(initialised(config))
    assert manifest.quality.dense_perplexity is None
    assert not run_folder(out).exists()
    with serving(Settings(models=(out,), threads=1)) as client:
        body = {"inputs": "the old man", "parameters": {"max_new_tokens": 4}}
        assert client.post("/generate", json=body).status_code == 200
        assert f'model_name="{form}"' in client.get("/metrics").text


def test_a_terminal_shows_tokens_per_second_and_a_file_is_measured_on(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes stderr for a terminal
    (tmp_path / "other.txt").write_text(_sentences(200))
    config, out = _written(tmp_path, _raw(tokens=4 * 128)), tmp_path / "out"
    with pytest.raises(SystemExit) as exit_:
        main([*_arguments(config, text, out), "--validation", str(tmp_path / "other.txt")])
    assert not exit_.value.code
    printed = capsys.readouterr()
    assert "tokens/s" in printed.err
    assert "of other.txt" in printed.out
    assert stored.read(out).manifest.quality.text == "other.txt"


def test_a_killed_run_goes_on_bit_for_bit(text: Path, tmp_path: Path) -> None:
    config = _written(tmp_path, _raw(checkpoint_every=8, tokens=200 * 128))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with _process(config, text, whole) as child:
        assert child.wait() == 0
    with _process(config, text, killed) as child:
        while not (run_folder(killed) / CHECKPOINT).exists():
            assert child.poll() is None
        child.send_signal(signal.SIGKILL)
    assert not killed.exists()
    with _process(config, text, killed) as child:
        assert "resumes from the checkpoint" in child.communicate()[1]
    ours, theirs = (_tensors(folder / artifact.WEIGHTS) for folder in (killed, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    curves = [stored.read(folder).manifest.provenance.config["curve"] for folder in (killed, whole)]
    assert curves[0] == curves[1]


def _process(config: Path, text: Path, out: Path) -> "subprocess.Popen[str]":
    """Start `ttgpt pretrain` as a process of its own."""
    command = [sys.executable, "-m", "compressor", *_arguments(config, text, out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)


def test_a_full_disk_keeps_the_last_checkpoint(text: Path, tmp_path: Path) -> None:
    config = parse_config(_raw())
    corpus = read_corpus(config, [text])
    said: list[str] = []
    training = Training(config, corpus, tmp_path, said.append)
    training.step = 1
    training.train(*_batch(config, corpus))
    training.save()
    before = (tmp_path / CHECKPOINT).read_bytes()
    training.step = 2
    with files_of_at_most(10_000):
        training.save()
    assert (tmp_path / CHECKPOINT).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]
    assert "File too large" in said[0]
    training.save()  # there is room again
    assert checkpoint.metadata(tmp_path / CHECKPOINT)["step"] == 2
    assert len(said) == 1


def _batch(config: Config, corpus: Corpus) -> tuple[torch.Tensor, torch.Tensor]:
    rows = corpus.training[: config.batch_tokens + 1].long()
    return rows[:-1].view(-1, 16), rows[1:].view(-1, 16)


def test_a_damaged_checkpoint_or_one_of_another_run_is_refused(text: Path, tmp_path: Path) -> None:
    config = parse_config(_raw())
    corpus = read_corpus(config, [text])
    training = Training(config, corpus, tmp_path)
    training.train(*_batch(config, corpus))
    training.save()
    with pytest.raises(ValueError, match="belongs to another run"):
        Training(config.model_copy(update={"seed": 1}), corpus, tmp_path)
    path = tmp_path / CHECKPOINT
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors is damaged"):
        Training(config, corpus, tmp_path)


def test_the_order_of_rows_depends_on_the_seed_alone_and_repeats_no_row_within_an_epoch() -> None:
    one, other, reseeded = (
        config_of(form, seed=seed, tokens=64 * 80) for form, seed in (("dense", 0), ("ttm", 0), ("dense", 1))
    )
    count = 64 * 20 + 1  # 80 rows of 16: 20 steps are an epoch
    steps = [rows_of_step(one, count, step)[0] for step in range(40)]
    assert all(torch.equal(rows, rows_of_step(other, count, step)[0]) for step, rows in enumerate(steps))
    for epoch in (steps[:20], steps[20:]):
        assert sorted(torch.cat(epoch).tolist()) == list(range(0, 64 * 20, 16))
    assert not torch.equal(torch.cat(steps[:20]), torch.cat(steps[20:]))
    assert not torch.equal(steps[0], rows_of_step(reseeded, count, 0)[0])


def test_a_phase_has_its_context_and_the_rate_rises_and_falls() -> None:
    config = parse_config(_raw())
    assert [rows_of_step(config, 10_000, step)[1] for step in (0, 31, 32, 63)] == [16, 16, 32, 32]
    rates = [config.rate(step) for step in range(config.steps)]
    assert rates[0] < rates[3] < max(rates) <= config.learning_rate
    assert rates[config.steps // 2 :] == sorted(rates[config.steps // 2 :], reverse=True)
    assert rates[-1] == pytest.approx(config.final_rate * config.learning_rate, rel=0.1)


def test_text_comes_from_files_and_folders_packed_or_not(text: Path, tmp_path: Path) -> None:
    import lzma

    (tmp_path / "a.txt").write_text(text.read_text())
    (tmp_path / "b.txt.xz").write_bytes(lzma.compress(f"one<|endoftext|>two {_sentences(50)}".encode()))
    (tmp_path / "notes.md").write_text("not read")
    corpus = read_corpus(parse_config(_raw()), [tmp_path], text)
    assert int((corpus.training == 0).sum()) == 3  # documents
    assert corpus.validation.name == text.name
    assert corpus.tokenizer.get_vocab_size() == 290


def _missing(raw: Raw) -> Raw:
    return {key: value for key, value in raw.items() if key != "tokens"}


REFUSED: dict[str, tuple[Callable[[Raw], Raw], str]] = {
    "an unknown key": (lambda raw: raw | {"rank": 3}, "rank"),
    "a missing key": (_missing, "tokens"),
    "a vocabulary too large for the text": (
        lambda raw: raw | {"model": SHAPE | {"vocab_size": 5000}},
        "model.vocab_size",
    ),
    "another tokenizer's vocabulary": (
        lambda raw: raw | {"tokenizer": "gpt2-mini"},
        "has 16384 tokens, but model.vocab_size is 290",
    ),
    "no such tokenizer": (lambda raw: raw | {"tokenizer": "nowhere.json"}, "tokenizer: there is no file"),
    "a file that is no tokenizer": (lambda raw: raw | {"tokenizer": "config.json"}, "is not a tokenizer"),
    "a rank above LPA's": (
        lambda raw: raw | {"attention": {"kind": "lpa", "rank": 33}},
        "attention.rank must be between 1 and 32, not 33",
    ),
    "a rank above the trains'": (
        lambda raw: raw | {"mlp": {"kind": "ttm", "rank": 65}},
        f"mlp.rank must be between 1 and {largest_ttm_rank(32, 128)}, not 65",
    ),
    "a table's rank": (
        lambda raw: raw | {"embedding": {"kind": "low_rank", "rank": 0}},
        "embedding.rank must be between 1",
    ),
    "a rank for dense": (lambda raw: raw | {"mlp": {"kind": "dense", "rank": 4}}, "rank must be left out"),
    "no rank": (lambda raw: raw | {"mlp": {"kind": "ttm"}}, "rank must be given"),
    "lpa in the mlp": (lambda raw: raw | {"mlp": {"kind": "lpa", "rank": 4}}, "lpa is for attention"),
    "a context beyond the positions": (
        lambda raw: raw | {"phases": [{"until": 1, "context": 64}]},
        "phases[0].context must be between 2 and 32",
    ),
    "phases that do not end": (lambda raw: raw | {"phases": [{"until": 0.5, "context": 16}]}, "the last at 1"),
    "a batch of broken rows": (lambda raw: raw | {"batch_tokens": 100}, "batch_tokens must be a multiple of"),
    "fewer tokens than a step": (lambda raw: raw | {"tokens": 100}, "tokens must be at least batch_tokens"),
    "a batch longer than the text": (lambda raw: raw | {"batch_tokens": 2**20, "tokens": 2**20}, "are needed"),
    "codes to train": (lambda raw: raw | {"codec": "int8"}, "codec must be fp32, bf16 or fp16"),
    "a rate of nothing": (lambda raw: raw | {"learning_rate": 0}, "learning_rate: Input should be greater than 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_config_is_refused(case: str, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, message = REFUSED[case]
    config = _written(tmp_path, change(_raw()))
    assert message in _refusal(_arguments(config, text, tmp_path / "out"), capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"", "nothing but white space"),
        (b" \n", "nothing but white space"),
        (b"the sea", "are needed"),
        (b"\xff", "is not UTF-8"),
    ],
    ids=["empty", "blank", "short", "binary"],
)
def test_a_bad_text_is_refused(
    contents: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = _written(tmp_path, _raw(tokenizer="gpt2-mini", model=SHAPE | {"vocab_size": 16384}))
    bad = tmp_path / "bad.txt"
    bad.write_bytes(contents)
    assert message in _refusal(_arguments(config, bad, tmp_path / "out"), capsys)
    assert not run_folder(tmp_path / "out").exists()


def test_missing_and_unwritable_places_are_refused(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, out = _written(tmp_path, _raw()), tmp_path / "out"
    assert "cannot read" in _refusal(_arguments(tmp_path / "no.json", text, out), capsys)
    assert "cannot read" in _refusal(_arguments(config, tmp_path / "no.txt", out), capsys)
    assert "no .txt or .xz file" in _refusal(_arguments(config, ROOT / "k8s", out), capsys)
    assert "out: cannot write to" in _refusal(_arguments(config, text, text / "out"), capsys)
    out.mkdir()
    (out / "mine").touch()
    assert "exists already" in _refusal(_arguments(config, text, out), capsys)
    config.write_text("{")
    assert "is not JSON" in _refusal(_arguments(config, text, tmp_path / "other"), capsys)


def _refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_the_shipped_recipe_is_the_reference_models() -> None:
    """What compressor/reference/README.md says of gpt2-mini, and its config.json."""
    config = read_config(SHIPPED["gpt2-mini"])
    assert parameter_count(initialised(config)) == 9_064_448
    assert (config.steps, config.batch_tokens, config.tokens) == (3125, 8192, 25_600_000)
    published = json.loads((ROOT / "compressor/reference/config.json").read_text())
    shape = config.decoder()
    names = set(published) & set(shape.__dataclass_fields__) - {"n_inner"}
    assert {name: published[name] for name in names} == {name: getattr(shape, name) for name in names}


def test_the_shipped_recipe_names_every_field_and_what_is_left_out_has_its_value() -> None:
    raw = json.loads(SHIPPED["gpt2-mini"].read_text())
    assert raw.keys() == Config.model_fields.keys()
    assert parse_config({name: raw[name] for name in ("model", "tokens", "phases")}) == parse_config(raw)
