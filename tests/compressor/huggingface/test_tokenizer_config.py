"""An export and an artefact's folder are tokenizers for `transformers`, with nothing to guess."""

import json
import logging
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from compressor import huggingface, stored
from compressor.artifact import folder as artifact
from compressor.errors import ArtifactError
from compressor.vocab import add_token
from tests.compressor.artifact.test_folder import _reseal as reseal
from tests.conftest import TINY, tiny_model, write_artifact

TEXTS = [
    "It was the old man's boat -- \N{SNOWMAN}",
    "",
    "  two  spaces , n't .",
    "a<|endoftext|>b",
    "\t\n\N{GRINNING FACE}",
]
TEXTS += ["in Z\u00fcrich, by the <|end", "Z\u00fcrich"]


@pytest.fixture(params=["artefact", "export"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with a tokenizer that knows one more token than gpt2-mini."""
    made = write_artifact(tmp_path / "artefact", tiny_model())
    add_token(made, "Z\u00fcrich", like="a town")
    if request.param == "artefact":
        return made
    loaded = stored.read(made)
    huggingface.export(stored.gpt2(loaded), loaded.tokenizer_json, tmp_path / "export")
    return tmp_path / "export"


def test_transformers_reads_it_as_it_is(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        theirs: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    assert not caplog.records
    ours = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in TEXTS:
        ids = theirs.encode(text)
        assert ids == ours.encode(text).ids
        assert theirs.decode(ids) == ours.decode(ids, skip_special_tokens=False)
    assert len(theirs) == ours.get_vocab_size()
    assert theirs.eos_token_id == theirs.bos_token_id == theirs.unk_token_id == TINY.eos_token_id
    assert (theirs.pad_token_id, theirs.padding_side) == (TINY.eos_token_id, "left")  # for batches to be continued
    assert theirs.model_max_length == TINY.n_positions


def test_the_end_of_text_is_the_models_own_whatever_it_is_called(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(huggingface.EMBEDDED_FOLDER / "tokenizer.json"))
    raw = json.loads(tokenizer.to_str())
    del raw["model"]["vocab"]["<|endoftext|>"]
    raw["model"]["vocab"]["</s>"] = 0
    raw["added_tokens"][0]["content"] = "</s>"
    huggingface.export(tiny_model(), json.dumps(raw).encode(), tmp_path / "export")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "export")
    assert (theirs.eos_token, theirs.eos_token_id, len(theirs)) == ("</s>", 0, 16384)
    assert AddedToken("<|endoftext|>").content not in theirs.get_vocab()


def test_it_is_verified_but_no_part_of_the_digest(tmp_path: Path) -> None:
    made = write_artifact(tmp_path / "artefact", tiny_model())
    digest = stored.read(made).manifest.digest
    path = made / artifact.TOKENIZER_CONFIG
    path.write_text(path.read_text().replace("64", "65"))
    with pytest.raises(ArtifactError, match=r"^tokenizer_config\.json: sha256"):
        stored.read(made)
    reseal(made)
    assert stored.read(made).manifest.digest == digest


def test_an_older_artefact_without_it_is_read(tmp_path: Path) -> None:
    made = write_artifact(tmp_path / "artefact", tiny_model())
    digest = stored.read(made).manifest.digest
    (made / artifact.TOKENIZER_CONFIG).unlink()
    reseal(made)
    assert stored.read(made).manifest.digest == digest
