"""GPT-2's table: what is there already is not made anew, and of another model nothing is taken."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from compressor.artifact.folder import MANIFEST
from compressor.artifact.manifest import Source
from compressor.experiments.published import DENSE, DETOKENISED, RAW, VARIANTS, measured, published_table
from compressor.huggingface import Checkpoint
from compressor.runtime.published import LAMBADA
from tests.conftest import TOKENIZER, tiny_model

QUICK = {name: VARIANTS[name] for name in (DENSE, "int8")}
TINY_CHECKPOINT = Checkpoint(tiny_model(), TOKENIZER, Source(id="tiny", sha256="0" * 64))


@pytest.fixture
def texts(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "wiki.test.raw").write_text(
        " = The Boat = \n \n It ( the boat ) lay upon the hard , unpainted . \n" * 5
    )
    passages = ["The boat lay upon the hard", "Nobody painted it but the master"]
    (tmp_path / "lambada.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in passages))
    return {
        RAW: tmp_path / "wiki.test.raw",
        DETOKENISED: tmp_path / "wiki.test.raw",
        LAMBADA: tmp_path / "lambada.jsonl",
    }


def test_every_variant_is_measured_on_every_text(texts: dict[str, Path], tmp_path: Path) -> None:
    found = measured(TINY_CHECKPOINT, texts, tmp_path / "made", variants=QUICK, stride=16)
    assert json.loads(json.dumps(found)) == found
    dense, int8 = found["rows"]
    assert (dense["variant"], int8["variant"]) == tuple(QUICK)
    assert dense["bytes"] > int8["bytes"]
    for row in (dense, int8):
        raw, detokenised, last = (row["texts"][form] for form in (RAW, DETOKENISED, LAMBADA))
        assert (raw["stride"], detokenised["stride"], last["passages"]) == (16, 16, 2)
        assert raw["tokens"] > detokenised["tokens"]
        assert raw["words"] == detokenised["words"]
        assert raw["dense_perplexity"] == dense["texts"][RAW]["perplexity"]
        assert last["dense_last_word_perplexity"] == dense["texts"][LAMBADA]["last_word_perplexity"]
    told = published_table(found)
    assert f"| int8 | {int8['bytes'] / 1e6:.2f} |" in told
    assert f"{dense['texts'][DETOKENISED]['word_perplexity']:.2f}" in told

    before = [(tmp_path / "made" / name / MANIFEST).stat().st_mtime_ns for name in QUICK]
    assert measured(TINY_CHECKPOINT, texts, tmp_path / "made", variants=QUICK, stride=16) == found
    assert [(tmp_path / "made" / name / MANIFEST).stat().st_mtime_ns for name in QUICK] == before

    other = replace(TINY_CHECKPOINT, source=Source(id="other", sha256="1" * 64))
    with pytest.raises(ValueError, match=r"out: .*dense was made of another model"):
        measured(other, texts, tmp_path / "made", variants=QUICK)


def test_a_missing_text_is_refused_before_anything_is_made(texts: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere"):
        measured(TINY_CHECKPOINT, texts | {LAMBADA: tmp_path / "nowhere"}, tmp_path / "made", variants=QUICK)
    assert not (tmp_path / "made").exists()
