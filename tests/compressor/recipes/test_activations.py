"""Activations of 8 bits: an artefact has them only where they cost next to nothing, and says what they cost."""

from pathlib import Path

import numpy as np
import pytest

from compressor import huggingface
from compressor.artifact.manifest import Manifest
from compressor.recipes import build as recipe
from compressor.recipes.build import build
from compressor.recipes.context import Context
from compressor.recipes.plans import Recipe
from compressor.runtime.evaluate import hidden_states
from compressor.runtime.load import load
from compressor.runtime.model import Floats
from compressor.vocab import set_token

IDS = np.arange(3, 43)


def made(out: Path, codec: str = "int4") -> Manifest:
    text = out.parent / "text.txt"
    text.write_text("It was a dark and stormy night. " * 300)
    context = Context(checkpoint=huggingface.load("gpt2-mini"))
    plan = Recipe(method="quantize", options={"codec": codec})
    return build(context, plan, out, text=text, activations=8)


def states(folder: Path) -> Floats:
    _, model = load(folder)
    return hidden_states(model, IDS)


def test_taken_where_perplexity_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "MOST_LOST", 1.0)
    taken = made(tmp_path / "taken").provenance
    monkeypatch.setattr(recipe, "MOST_LOST", -1.0)
    refused = made(tmp_path / "refused").provenance
    lost = taken.config["activations"]["perplexity_lost"]
    assert lost != 0
    assert taken.config["activations"] == {"bits": 8, "perplexity_lost": lost}
    assert refused.config["activations"] == {"bits": 16, "perplexity_lost": lost}
    assert taken.command == refused.command
    assert "--activations 8" in taken.command
    assert (load(tmp_path / "taken")[0].activations, load(tmp_path / "refused")[0].activations) == (8, 16)
    assert not np.array_equal(states(tmp_path / "taken"), states(tmp_path / "refused"))


def test_an_edit_keeps_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "MOST_LOST", 1.0)
    made(tmp_path / "a")
    set_token(tmp_path / "a", " sea", like=" ocean")
    assert load(tmp_path / "a")[0].activations == 8


def test_codes_without_groups_meet_16_bits(tmp_path: Path) -> None:
    assert "activations" not in made(tmp_path / "a", "int8").provenance.config
    assert load(tmp_path / "a")[0].activations == 16
