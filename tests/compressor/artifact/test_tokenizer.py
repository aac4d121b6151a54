"""A text is exactly its tokens, whatever else the tokenizer's files say, and its end is the model's own."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, processors
from transformers import AutoTokenizer, GPT2Tokenizer

from compressor import huggingface, stored
from compressor.artifact.folder import WEIGHTS, Artifact, write
from compressor.artifact.tokenizer import read_tokenizer
from compressor.errors import ArtifactError, CheckpointError
from compressor.evaluation.questions import accuracy
from compressor.gpt2 import GPT2
from compressor.pretraining.config import Config, Shape
from compressor.pretraining.text import read_corpus
from compressor.recipes.build import build
from compressor.recipes.context import Context
from compressor.recipes.plans import Recipe
from compressor.runtime._decoder import Matrix
from compressor.runtime.evaluate import read_text
from compressor.runtime.load import load
from compressor.runtime.model import Model
from service.engine.models import load as serve
from tests.conftest import TINY, tiny_model, write_artifact

Built = tuple[Artifact[Matrix], Model]
PLAIN = (huggingface.EMBEDDED_FOLDER / "tokenizer.json").read_bytes()
TEXT = (huggingface.EMBEDDED_FOLDER / "validation.txt").read_text()[:8000]


def _cut_and_filled(tokenizer: Tokenizer) -> None:
    tokenizer.enable_truncation(32)
    tokenizer.enable_padding(length=4096)


def _dropping_merges(tokenizer: Tokenizer) -> None:
    tokenizer.model.dropout = 0.5


def _with_both_ends(tokenizer: Tokenizer) -> None:
    ends = processors.TemplateProcessing(
        single="<|endoftext|> $A <|endoftext|>",
        pair="<|endoftext|> $A $B:1 <|endoftext|>:1",
        special_tokens=[("<|endoftext|>", 0)],
    )
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), ends])


CHANGES = [_cut_and_filled, _dropping_merges, _with_both_ends]


def _changed(change: Callable[[Tokenizer], None]) -> bytes:
    tokenizer = Tokenizer.from_str(PLAIN.decode())
    change(tokenizer)
    return tokenizer.to_str(pretty=True).encode()


def _rewrite(folder: Path, model: GPT2, tokenizer_json: bytes) -> None:
    """Write an artefact of a model and any tokenizer to `folder` / "old"."""
    made = load(write_artifact(folder / "made", tiny_model()))[0].manifest
    contents = stored.contents(model, tokenizer_json, model.decoder())
    write(folder / "old", contents, quality=made.quality, golden=made.golden, provenance=made.provenance)


def _write_checkpoint(folder: Path, tokenizer_json: bytes) -> Path:
    huggingface.export(tiny_model(), PLAIN, folder)
    (folder / "tokenizer.json").write_bytes(tokenizer_json)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "story.txt"
    path.write_text(TEXT)
    return path


def _built(checkpoint: Path, out: Path, text: Path) -> Built:
    recipe = Recipe(method="gptq", options={"codec": "int4"})
    build(Context(checkpoint=huggingface.load(str(checkpoint)), texts=[text]), recipe, out, text=text)
    return load(out)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Built:
    folder = tmp_path_factory.mktemp("plain")
    return _built(_write_checkpoint(folder / "checkpoint", PLAIN), folder / "out", text)


@pytest.mark.parametrize("change", CHANGES)
def test_statistics_and_quality_do_not_depend_on_what_stands_beside_the_tokens(
    change: Callable[[Tokenizer], None], plain: Built, text: Path, tmp_path: Path
) -> None:
    built = _built(_write_checkpoint(tmp_path / "checkpoint", _changed(change)), tmp_path / "out", text)
    manifests = built[0].manifest, plain[0].manifest
    found, expected = (manifest.quality for manifest in manifests)
    assert (found.tokens, found.text_sha256) == (expected.tokens, expected.text_sha256)
    assert found.perplexity == expected.perplexity
    assert manifests[0].golden == manifests[1].golden
    assert manifests[0].files[WEIGHTS] == manifests[1].files[WEIGHTS]  # so GPTQ saw the same
    asked = [accuracy(plain[1], TEXT, one.tokenizer) for one, _ in (built, plain)]
    assert asked[0] == asked[1]


@pytest.mark.parametrize("change", CHANGES)
def test_an_artefact_that_has_it_all_the_same_is_served_without(
    change: Callable[[Tokenizer], None], text: Path, tmp_path: Path
) -> None:
    _rewrite(tmp_path, tiny_model(), _changed(change))
    expected = Tokenizer.from_str(PLAIN.decode()).encode(TEXT).ids
    assert serve(tmp_path / "old").encode(TEXT) == expected
    assert read_text(text, load(tmp_path / "old")[0].tokenizer).ids.tolist() == expected


@pytest.mark.parametrize("change", CHANGES)
def test_pre_training_reads_every_token(change: Callable[[Tokenizer], None], text: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(_changed(change))
    shape = Shape(vocab_size=16384, n_positions=64, n_embd=32, n_layer=1, n_head=2)
    config = Config.model_validate(
        {"model": shape.model_dump(), "tokenizer": str(tmp_path / "tokenizer.json"), "tokens": 640, "batch_tokens": 64}
        | {"phases": [{"until": 1.0, "context": 64}]}
    )
    corpus = read_corpus(config, [text], text)
    assert corpus.training.tolist() == [*Tokenizer.from_str(PLAIN.decode()).encode(TEXT).ids, 0]
    assert corpus.tokenizer.to_str() == Tokenizer.from_str(corpus.tokenizer.to_str()).to_str()
    assert read_tokenizer(corpus.tokenizer.to_str()).padding is None


def test_a_tokenizer_of_which_nothing_was_changed_keeps_its_bytes(tmp_path: Path) -> None:
    assert huggingface.load(str(_write_checkpoint(tmp_path / "tiny", PLAIN))).tokenizer_json == PLAIN


VOCAB: dict[str, int] = json.loads(PLAIN)["model"]["vocab"]
MERGES = "#version: 0.2\n" + "\n".join(" ".join(pair) for pair in json.loads(PLAIN)["model"]["merges"]) + "\n"


def _write_vocab(folder: Path, vocab: dict[str, int], files: dict[str, object], eos_token_id: int = 0) -> Path:
    """Write a checkpoint whose tokenizer is vocab.json and merges.txt, and what else older ones have."""
    model = tiny_model(replace(TINY, vocab_size=16400))
    huggingface.export(model, PLAIN, folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    (folder / "merges.txt").write_text(MERGES)
    for name, value in {"vocab.json": vocab, **files}.items():
        (folder / name).write_text(json.dumps(value))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": eos_token_id}))
    return folder


OWN_NAME = {token: n for token, n in VOCAB.items() if n} | {"</s>": 0}
DESCRIBED = {"content": "<pad>", "single_word": False, "lstrip": False, "rstrip": True, "normalized": False}
FOLDERS: dict[str, tuple[dict[str, int], dict[str, object], int, str]] = {
    "no more files": (VOCAB, {}, 0, "<|endoftext|>"),
    "another name": (OWN_NAME, {}, 0, "</s>"),
    "a name in the map": (OWN_NAME, {"special_tokens_map.json": {"eos_token": "</s>"}}, 0, "</s>"),
    "added tokens": (
        VOCAB,
        {"added_tokens.json": {"<end>": 16385, "<pad>": 16384}, "special_tokens_map.json": {"pad_token": "<pad>"}},
        16385,
        "<end>",
    ),
    "described tokens": (
        VOCAB,
        {"tokenizer_config.json": {"added_tokens_decoder": {"16384": DESCRIBED | {"special": True}}}},
        16384,
        "<pad>",
    ),
    "a space before": (VOCAB, {"tokenizer_config.json": {"add_prefix_space": True}}, 0, "<|endoftext|>"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_tokenizer_of_several_files_is_the_one_that_transformers_makes(case: str, tmp_path: Path) -> None:
    vocab, files, end_id, name = FOLDERS[case]
    folder = _write_vocab(tmp_path / "tiny", vocab, files, end_id)
    checkpoint = huggingface.load(str(folder))
    assert checkpoint.end_of_text == name
    made = read_tokenizer(checkpoint.tokenizer_json)
    given: dict[str, Any] = {} if case in ("added tokens", "described tokens") else {"eos_token": name}
    peer = GPT2Tokenizer.from_pretrained(folder, **{"unk_token": name, "bos_token": name, "eos_token": name} | given)
    text = f"The tide{name} was out<pad> --  \N{SNOWMAN} \n\n 1902"
    assert made.encode(text).ids == peer.encode(text)
    assert made.decode(made.encode(f"{name}one{name}").ids).strip() == "one"


@pytest.mark.parametrize("case", FOLDERS)
def test_an_export_names_its_own_special_tokens(case: str, tmp_path: Path) -> None:
    vocab, files, end_id, name = FOLDERS[case]
    checkpoint = huggingface.load(str(_write_vocab(tmp_path / "tiny", vocab, files, end_id)))
    huggingface.export(checkpoint.model, checkpoint.tokenizer_json, tmp_path / "export")
    peer = AutoTokenizer.from_pretrained(tmp_path / "export")
    assert (peer.eos_token, peer.eos_token_id) == (name, end_id)
    assert len(peer) == read_tokenizer(checkpoint.tokenizer_json).get_vocab_size()  # nothing had to be added
    text = f"The tide{name} was out"
    assert peer.encode(text) == read_tokenizer(checkpoint.tokenizer_json).encode(text).ids


def test_a_line_end_that_ends_a_text_stays_a_line_end(tmp_path: Path) -> None:
    checkpoint = huggingface.load(str(_write_vocab(tmp_path / "tiny", VOCAB, {}, VOCAB["\u010a"])))
    made = read_tokenizer(checkpoint.tokenizer_json)
    assert made.encode("\n").ids == [VOCAB["\u010a"]]
    assert made.decode(made.encode("one\ntwo").ids) == "one\ntwo"


DAMAGE: dict[str, tuple[dict[str, object], str]] = {
    "an id that is missing": ({"vocab.json": {k: v for k, v in VOCAB.items() if v}}, "eos_token_id must be one of"),
    "a token behind the table": ({"vocab.json": VOCAB | {"zz": 99999}}, r"99999 \('zz'\), but vocab_size is 16400"),
    "an id twice": ({"vocab.json": VOCAB | {"zz": 5}}, "vocab.json: two tokens have the same id"),
    "no number": ({"vocab.json": VOCAB | {"zz": None}}, "'zz' must have an id of at least 0, not None"),
    "a list": ({"vocab.json": []}, "vocab.json: must be a JSON object, not list"),
    "a gap": ({"added_tokens.json": {"<x>": 16390}}, "added_tokens.json: '<x>' must be token 16384, the next one"),
    "an added list": ({"added_tokens.json": [1]}, "added_tokens.json: must be a JSON object, not list"),
    "no id": ({"added_tokens.json": {"<x>": "1"}}, "added_tokens.json: '<x>' must have an integer"),
    "a described number": ({"tokenizer_config.json": {"added_tokens_decoder": {"1": 2}}}, "added_tokens_decoder must"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_vocabularies_are_refused_by_name(case: str, tmp_path: Path) -> None:
    files, message = DAMAGE[case]
    with pytest.raises(CheckpointError, match=message):
        huggingface.load(str(_write_vocab(tmp_path / "tiny", VOCAB, files)))


@pytest.mark.parametrize("line", ["one", "a b c", " a", "\u2581x y"])
def test_damaged_merges_are_refused_by_line(line: str, tmp_path: Path) -> None:
    folder = _write_vocab(tmp_path / "tiny", VOCAB, {})
    (folder / "merges.txt").write_text(f"#version: 0.2\n{line}\n")
    with pytest.raises(CheckpointError, match=r"merges\.txt"):
        huggingface.load(str(folder))


def test_an_end_of_text_that_the_tokenizer_lacks_is_refused(tmp_path: Path) -> None:
    folder = _write_vocab(tmp_path / "tiny", VOCAB, {}, 16399)
    with pytest.raises(CheckpointError, match="eos_token_id must be one of the tokenizer's 16384 tokens, not 16399"):
        huggingface.load(str(folder))
    with pytest.raises(ArtifactError, match=r"tokenizer\.json: eos_token_id must be one of"):
        _rewrite(tmp_path, tiny_model(replace(TINY, vocab_size=16400, eos_token_id=16399)), PLAIN)
    assert not (tmp_path / "old").exists()
