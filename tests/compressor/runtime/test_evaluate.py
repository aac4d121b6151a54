"""Quality measures against their definitions."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from compressor import huggingface
from compressor.runtime.evaluate import evaluate, golden, hidden_states, read_text
from tests.conftest import tiny_model

TOKENIZER = Tokenizer.from_file(str(huggingface.EMBEDDED_FOLDER / "tokenizer.json"))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "story.txt"
    path.write_text("The harbour-master's boat lay upon the hard, and nobody had painted it. \N{EM DASH}\n" * 10)
    return path


@torch.inference_mode()
def test_every_token_but_the_first_is_predicted_once_within_its_window(text: Path) -> None:
    model, dense = tiny_model(), tiny_model(seed=1)
    ids = torch.tensor(TOKENIZER.encode(text.read_text()).ids)
    nll, kl, agreements = [], [], []
    for start in range(0, len(ids) - 1, 64):
        window, targets = ids[start : start + 64][: len(ids) - 1 - start], ids[start + 1 : start + 65]
        ours, theirs = (m.logits(m(window.unsqueeze(0)))[0].double().log_softmax(-1) for m in (model, dense))
        nll.append(F.nll_loss(ours, targets, reduction="none"))
        kl.append((theirs.exp() * (theirs - ours)).sum(-1))
        agreements.append((ours.argmax(-1) == theirs.argmax(-1)).double())
    quality = evaluate(model.decoder(), dense.decoder(), read_text(text, TOKENIZER))
    assert quality.tokens == len(ids) - 1 == len(torch.cat(nll))
    assert quality.perplexity == pytest.approx(torch.cat(nll).mean().exp().item(), rel=1e-4)
    assert quality.bits_per_byte == pytest.approx(
        torch.cat(nll).sum().item() / torch.tensor(2.0).log().item() / len(text.read_bytes()), rel=1e-4
    )
    assert quality.kl == pytest.approx(torch.cat(kl).mean().item(), rel=1e-4)
    assert quality.top1_agreement == pytest.approx(torch.cat(agreements).mean().item())


def test_a_model_agrees_with_itself(text: Path) -> None:
    quality = evaluate(tiny_model().decoder(), tiny_model().decoder(), read_text(text, TOKENIZER))
    assert (quality.perplexity_ratio, quality.top1_agreement) == (1.0, 1.0)
    assert quality.kl == pytest.approx(0, abs=1e-6)


def test_without_a_dense_model_nothing_is_claimed_about_it(text: Path) -> None:
    quality = evaluate(tiny_model().decoder(), None, read_text(text, TOKENIZER))
    assert quality.dense_perplexity is quality.perplexity_ratio is quality.kl is quality.top1_agreement is None


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"", "at least 2 tokens, not 0"), (b"a", "at least 2 tokens"), (b"\xff\xfe", r"not UTF-8 \(byte 0\)")],
)
def test_a_text_that_cannot_be_measured_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "bad.txt").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_text(tmp_path / "bad.txt", TOKENIZER)
    with pytest.raises(ValueError, match="text: cannot read"):
        read_text(tmp_path / "nowhere.txt", TOKENIZER)


def test_golden_values_are_reproduced() -> None:
    model = huggingface.load("gpt2-mini").model.decoder()
    known = golden(model, TOKENIZER)
    logits = model.logits(hidden_states(model, np.array(known.prompt_ids))[-1])
    assert np.abs(logits[known.top_ids] - known.top_logits).max() <= known.tolerance / 10
    if known.continuation_ids:
        assert known.continuation_ids[0] == known.top_ids[0]


def test_the_embedded_text_is_long_enough_and_plain() -> None:
    data = (huggingface.EMBEDDED_FOLDER / "validation.txt").read_bytes()
    assert len(data) >= 20_000
    assert data.isascii()
