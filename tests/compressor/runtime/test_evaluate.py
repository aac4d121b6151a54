"""Quality measures against their definitions."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from compressor import huggingface
from compressor.runtime.evaluate import evaluate, golden, hidden_states, read_text, verdicts
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


@settings(deadline=None)
@given(count=st.integers(1, 4000), scale=st.floats(0, 60), seed=st.integers(0, 9))
def test_verdicts_are_what_fp64_says(count: int, scale: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    logits, reference = random.normal(0, scale, (2, 3, count)).astype(np.float32)
    targets = random.integers(0, count, 3)
    ours, theirs = (torch.from_numpy(x).double().log_softmax(-1).numpy() for x in (logits, reference))
    found = verdicts(logits, targets, reference, 2)
    kl = (np.exp(theirs) * (theirs - ours)).sum(-1)
    for column, expected in enumerate([ours[range(3), targets], theirs[range(3), targets], kl]):
        np.testing.assert_allclose(found[:, column], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found[:, 3:], np.stack([logits.argmax(-1), reference.argmax(-1)], -1))
    alone = verdicts(logits, targets, None, 1)
    np.testing.assert_array_equal(alone[:, [0, 3]], found[:, [0, 3]])
    np.testing.assert_array_equal(alone[:, 2], np.zeros(3))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 17, 39])
def test_logits_that_are_not_finite_are_seen(value: float, place: int) -> None:
    logits = np.zeros((1, 40), np.float32)
    logits[0, place] = value
    assert not np.isfinite(verdicts(logits, np.array([3]), None, 1)[0, 0])
    assert not np.isfinite(verdicts(np.zeros_like(logits), np.array([3]), logits, 1)[0, 1:3]).any()


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
