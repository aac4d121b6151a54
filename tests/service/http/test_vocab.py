"""An edited artefact is served like any other: the added token is looked up, fed in and written out."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from compressor.methods import tensorgpt
from compressor.vocab import add_token
from service.engine.models import LoadedModel, load
from service.engine.streaming import TextStream
from service.settings import Settings
from tests.conftest import tiny_model, write_artifact
from tests.service.conftest import serving

TOKENS = [" Zorbl", "Zürich"]  # the second one's letters all stand for bytes in the byte-level alphabet
IDS = [16384, 16385]


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of trains with two tokens more, whose long and opposite vectors make one of them win every step."""
    model = tiny_model(seed=3)
    trains = tensorgpt.compress(model.wte.dense(), tensorgpt.Config(rank=2))
    folder = write_artifact(tmp_path_factory.mktemp("edited") / "edited", model.with_matrices({"wte": trains}))
    vector = 20 * torch.randn(32, generator=torch.Generator().manual_seed(0))
    for token, sign in zip(TOKENS, (1, -1), strict=True):
        path = folder.parent / "vector.json"
        path.write_text(json.dumps((sign * vector).tolist()))
        add_token(folder, token, vector=path)
    return folder


@pytest.fixture(scope="module")
def loaded(edited: Path) -> LoadedModel:
    return load(edited)


@pytest.fixture(scope="module")
def served(edited: Path) -> Iterator[httpx.Client]:
    with serving(Settings(models=(edited,), threads=1)) as client:
        yield client


@pytest.mark.parametrize("token", TOKENS)
def test_an_added_token_has_one_vector_its_row(served: httpx.Client, edited: Path, token: str) -> None:
    answer, model = served.post("/embeddings", json={"inputs": token}), load(edited).decoder
    assert answer.status_code == 200
    (item,) = answer.json()["data"]
    assert item["ids"] == [IDS[TOKENS.index(token)]]
    assert item["tokens"] == [token]
    assert np.array_equal(np.array(item["vectors"], np.float32), model.embed(np.array(item["ids"])))


def test_added_tokens_are_read_and_written_as_their_text(served: httpx.Client) -> None:
    body = {"inputs": "In Zürich a Zorbl", "parameters": {"max_new_tokens": 6, "details": True}}
    answer = served.post("/generate", json=body)
    assert answer.status_code == 200
    tokens = answer.json()["details"]["tokens"]
    assert [token["id"] for token in tokens if token["id"] not in IDS] == []
    assert answer.json()["generated_text"] == "".join(TOKENS[IDS.index(token["id"])] for token in tokens)
    stream = served.post("/generate_stream", json=body).text
    events = [json.loads(line.removeprefix("data:")) for line in stream.splitlines() if line]
    assert [event["token"]["text"] for event in events] == [TOKENS[IDS.index(token["id"])] for token in tokens]


def test_an_added_token_is_plain_text_among_byte_level_ones(loaded: LoadedModel) -> None:
    text = "naïve" + "".join(TOKENS)
    ids = loaded.encode(text)
    assert ids[-2:] == IDS
    stream = TextStream([])
    shown = [stream.push(loaded.vocabulary.bytes[token_id]) for token_id in ids]
    assert shown[-2:] == TOKENS
    assert "".join(shown) + stream.finish() == text == loaded.tokenizer.decode(ids)
    assert loaded.vocabulary.special == {loaded.eos_id}
    assert len(text.encode()) <= len(ids) * loaded.vocabulary.longest_bytes
