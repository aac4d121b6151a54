"""Texts in their published forms, against transformers and torch."""

import json
import lzma
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from transformers import GPT2LMHeadModel

from compressor.cli import main
from compressor.gpt2 import GPT2, encoded
from compressor.runtime.published import FORMS, Dense, form_of, measure
from compressor.runtime.wikitext import detokenised
from tests.compressor.command import refused
from tests.conftest import TINY, TOKENIZER, tiny_model
from tests.tolerances import HARNESS

TOKENS = Tokenizer.from_buffer(TOKENIZER)
CONTEXT = TINY.n_positions
LINES = (
    " = The Boat = \n \n The harbour @-@ master 's boat ( built in 1 @,@ 902 ) lay upon the hard , unpainted . \n" * 4
)
PASSAGES = [
    "The harbour-master's boat lay upon the hard, and nobody had painted it but the master",
    "He asked for the boat.  The boat",
    "A long way over the sea " * 30 + "lighthouse",
    "One two",
]


@pytest.fixture(scope="module")
def judge(checkpoint: Path) -> GPT2LMHeadModel:
    """The tiny model in transformers."""
    return GPT2LMHeadModel.from_pretrained(checkpoint)


def _written(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def _ids(text: str) -> list[int]:
    found: list[int] = TOKENS.encode(text, add_special_tokens=False).ids
    return found


def _measured(path: Path, form: str | None = None, stride: int | None = None) -> dict[str, Any]:
    return measure(tiny_model().decoder(), None, path, TOKENS, form_of(path, form), stride=stride)


@torch.inference_mode()
def _nll(judge: GPT2LMHeadModel, text: str, stride: int) -> float:
    """Return the loss of a text, each token but the first in the first window of `stride` more that reaches it."""
    ids, total, read = _ids(text), 0.0, 0
    while read < len(ids) - 1:
        start = 0 if read == 0 else read - CONTEXT + stride
        end = min(start + CONTEXT, len(ids) - 1)
        logits = judge(torch.tensor([ids[start:end]])).logits[0, read - start :].double()
        total += F.cross_entropy(logits, torch.tensor(ids[read + 1 : end + 1]), reduction="sum").item()
        read = end
    return total


@pytest.mark.parametrize("stride", [None, 7, 63])
@pytest.mark.parametrize("form", ["wikitext", "wikitext-detokenised", "text"])
def test_perplexity_is_that_of_transformers(
    tmp_path: Path, judge: GPT2LMHeadModel, form: str, stride: int | None
) -> None:
    path = _written(tmp_path, "wiki.test.tokens", LINES)
    found = _measured(path, form, stride)
    read = detokenised(LINES) if form == "wikitext-detokenised" else LINES
    nll = _nll(judge, read, stride or CONTEXT)
    assert (found["context"], found["stride"]) == (CONTEXT, stride or CONTEXT)
    assert found["tokens"] == len(_ids(read)) - 1
    assert math.log(found["perplexity"]) == pytest.approx(nll / found["tokens"], rel=HARNESS)
    assert found["bits_per_byte"] == pytest.approx(nll / math.log(2) / len(LINES.encode()), rel=HARNESS)
    if form != "text":
        assert found["words"] == len(LINES.split()) + len(LINES.splitlines())
        assert math.log(found["word_perplexity"]) == pytest.approx(nll / found["words"], rel=HARNESS)


@torch.inference_mode()
def test_last_words_are_those_of_transformers(tmp_path: Path, judge: GPT2LMHeadModel) -> None:
    path = _written(tmp_path, "lambada_test.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in PASSAGES))
    scores, right = [], 0
    for text in PASSAGES:
        ids, answer = _ids(text), _ids(" " + text.split(" ")[-1])
        given = torch.tensor([ids[-CONTEXT - 1 : -1]])
        logits = judge(given).logits[0].double().log_softmax(-1)[-len(answer) :]
        assert ids[-len(answer) :] == answer
        scores.append(sum(row[token].item() for row, token in zip(logits, answer, strict=True)))
        right += logits.argmax(-1).tolist() == answer
    found = _measured(path)
    assert (found["passages"], found["last_word_accuracy"]) == (len(PASSAGES), right / len(PASSAGES))
    assert math.log(found["last_word_perplexity"]) == pytest.approx(-sum(scores) / len(scores), rel=HARNESS)


@torch.inference_mode()
def test_what_the_model_says_itself_is_right(tmp_path: Path, judge: GPT2LMHeadModel) -> None:
    said = []
    for word in LINES.split():
        logits = judge(torch.tensor([_ids(f"The {word}")])).logits[0, -1]
        said.append(f"The {word}{TOKENS.decode([int(logits.argmax())])}")
    whole = [text for text in said if len(text.split(" ")) == 3 and text.split(" ")[-1].isalpha()]
    path = _written(tmp_path, "said.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in whole))
    assert _measured(path)["last_word_accuracy"] == 1.0


def test_the_dense_model_stands_beside_it(tmp_path: Path) -> None:
    path = _written(tmp_path, "two.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in PASSAGES))
    model = tiny_model().decoder()
    found = measure(model, Dense(model, "tiny"), path, TOKENS, "lambada")
    assert found["dense_last_word_perplexity"] == found["last_word_perplexity"]
    quality = measure(model, Dense(model, "tiny"), _written(tmp_path, "a.raw", LINES), TOKENS, "wikitext", stride=7)
    assert quality["perplexity_ratio"] == 1.0


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("wiki.test.tokens", "wikitext"),
        ("wiki.test.raw", "wikitext"),
        ("wiki.valid.raw.xz", "wikitext"),
        ("lambada_test.jsonl", "lambada"),
        ("story.txt", "text"),
        ("story.txt.xz", "text"),
        ("story", "text"),
    ],
)
def test_the_form_is_told_by_the_name(name: str, form: str) -> None:
    assert form_of(Path(name)) == form
    assert {form_of(Path(name), given) for given in FORMS} == set(FORMS)


def test_a_packed_file_is_the_same(tmp_path: Path) -> None:
    plain = _written(tmp_path, "wiki.test.raw", LINES)
    packed = tmp_path / "wiki.test.raw.xz"
    packed.write_bytes(lzma.compress(LINES.encode()))
    assert _measured(packed) | {"text": ""} == _measured(plain) | {"text": ""}


def test_the_command_prints_what_is_measured(
    tmp_path: Path, tiny_artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _written(tmp_path, "wiki.test.tokens", LINES)
    with pytest.raises(SystemExit) as exit_:
        main(["evaluate", str(tiny_artifact), "--text", str(path), "--stride", "32", "--json"])
    assert not exit_.value.code
    printed = json.loads(capsys.readouterr().out)
    assert _measured(path, stride=32).items() <= printed.items()
    assert "weight_bytes" in printed


GOOD = json.dumps({"text": "A whole passage"})
BROKEN = {
    "": "line 1 must be JSON",
    f"{GOOD}\n\n{GOOD}\n": "line 2 must be JSON",
    f'{GOOD}\n{{"text": "cut': "line 2 must be JSON",
    '["a b"]\n': "line 1 must be JSON",
    '{"words": "a b"}\n': "line 1 must be JSON",
    '{"text": 3}\n': "line 1 must be JSON",
    f"{GOOD}\n{GOOD}\n" + '{"text": "alone"}\n': "line 3 must have words and a last one",
    '{"text": "ends with "}\n': "line 1 must have words and a last one",
    '{"text": " only"}\n': "line 1 must have words and a last one",
    json.dumps({"text": "a " + "xq" * 200}): f"line 1 must end with a word of 1 to {CONTEXT} tokens",
}


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_line_is_named(
    tiny_artifact: Path, tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _written(tmp_path, "broken.jsonl", text)
    error = refused(["evaluate", tiny_artifact, "--text", path], capsys)
    assert error.startswith(f"error: text: {path}, {BROKEN[text]}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--form", "arpa"], f"form must be one of {', '.join(FORMS)}, not 'arpa'"),
        (["--stride", "0"], f"stride must be between 1 and {CONTEXT}, not 0"),
        (["--stride", "65"], f"stride must be between 1 and {CONTEXT}, not 65"),
        (["--form", "lambada", "--stride", "8"], "stride does not go with lambada"),
        (["--form", "lambada"], "line 1 must be JSON"),
    ],
)
def test_an_illegal_choice_is_one_line(
    tiny_artifact: Path, tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _written(tmp_path, "story.txt", LINES)
    assert message in refused(["evaluate", tiny_artifact, "--text", path, *options], capsys)


def test_a_loss_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    vectors = {name: vector.decode() for name, vector in tiny_model().vectors().items()}
    vectors["ln_f.bias"] = torch.full((TINY.n_embd,), 3e38)
    broken = GPT2(TINY, tiny_model().matrices(), encoded(vectors, "fp32"))
    with pytest.raises(ValueError, match="not finite"):
        measure(broken.decoder(), None, _written(tmp_path, "a.jsonl", GOOD), TOKENS, "lambada")
