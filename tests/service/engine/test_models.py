"""Loading: readiness, footprint and quality in the metrics, and artefacts that must not be served."""

import asyncio
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from compressor.errors import ArtifactError
from service.engine.models import check_golden, load_all
from service.http.app import create_app
from service.settings import Settings
from tests.conftest import TINY, tiny_model, write_artifact
from tests.service.conftest import sample, serving


def test_models_are_listed(client: httpx.Client) -> None:
    answer = client.get("/v1/models").json()
    assert answer["object"] == "list"
    assert [card["id"] for card in answer["data"]] == ["tiny-fp32", "tiny-int8"]
    assert {card["object"] for card in answer["data"]} == {"model"}


def test_a_server_without_models_is_alive_but_not_ready(settings: Settings) -> None:
    async def test() -> None:
        transport = httpx.ASGITransport(create_app(settings))  # its lifespan, which loads, is not run
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            assert (await client.get("/livez")).status_code == 200
            starting = await client.get("/startupz")
            assert (starting.status_code, starting.json()) == (503, {"status": "loading"})
            for answer in (
                await client.get("/readyz"),
                await client.get("/info"),
                await client.post("/generate", json={"inputs": "x"}),
                await client.post("/embeddings", json={"inputs": "x"}),
            ):
                assert answer.status_code == 503
                assert answer.json()["error_type"] == "healthcheck"
                assert answer.headers["retry-after"] == "1"
            listed = await client.get("/v1/models")
            assert (listed.status_code, listed.json()["error"]["code"]) == (503, "healthcheck")

    asyncio.run(test())


def test_the_start_is_over(client: httpx.Client) -> None:
    started = client.get("/startupz")
    assert (started.status_code, started.json()) == (200, {"status": "started"})


def test_metrics_of_the_models(client: httpx.Client, artifacts: list[Path]) -> None:
    for folder in artifacts:
        name = {"model_name": folder.name}
        weights = [
            sample(client, "ttgpt_model_weight_bytes", component=part, form="disk", **name)
            for part in ("wte", "wpe", "attn", "mlp", "norm")
        ]
        assert all(weights)
        assert sum(weights) < (folder / "model.safetensors").stat().st_size < sum(weights) + 20_000
        files = sum(path.stat().st_size for path in folder.iterdir())
        assert sample(client, "ttgpt_model_artifact_bytes", **name) == files
        assert sample(client, "ttgpt_model_dense_equivalent_bytes", component="wte", **name) == 4 * 16384 * 32
        assert sample(client, "ttgpt_model_quality", metric="perplexity_ratio", **name) == 1.25
        assert sample(client, "ttgpt_model_info", method="dense", **name) == 1
        assert sample(client, "ttgpt_model_load_seconds", phase="warm_up", **name) > 0
    assert sample(client, "ttgpt_memory_rss_bytes") > 1e7


def test_the_default_model_comes_first(artifacts: list[Path]) -> None:
    loaded: list[str] = []
    models = load_all(artifacts, "tiny-int8", lambda model: loaded.append(model.name))
    assert [model.name for model in models] == loaded == ["tiny-int8", "tiny-fp32"]
    assert models.named(None).name == "tiny-int8"
    assert len({id(model.tokenizer) for model in models}) == len({id(model.vocabulary) for model in models}) == 1


@pytest.mark.parametrize(("twice", "default", "hint"), [(True, None, "different names"), (False, "gpt5", "tiny-fp32")])
def test_refused_choices(artifacts: list[Path], twice: bool, default: str | None, hint: str) -> None:
    folders = artifacts * 2 if twice else artifacts
    with pytest.raises(ValueError, match=hint):
        load_all(folders, default, lambda model: None)


def test_a_served_draft_is_loaded_once(artifacts: list[Path]) -> None:
    for draft in (Path("tiny-int8"), artifacts[1]):
        models = load_all(artifacts, None, lambda model: None, draft=draft)
        assert models.drafts == {"tiny-fp32": models.named("tiny-int8")}


def test_another_draft_proposes_to_all(artifacts: list[Path], tmp_path: Path) -> None:
    loaded: list[str] = []
    other = write_artifact(tmp_path / "other", tiny_model(seed=9))
    models = load_all(artifacts, None, lambda model: loaded.append(model.name), draft=other)
    assert loaded == ["tiny-fp32", "tiny-int8", "other"]
    assert {name: draft.name for name, draft in models.drafts.items()} == dict.fromkeys(loaded[:2], "other")
    assert [model.name for model in models] == loaded[:2]


def test_a_draft_that_can_propose_to_none_is_refused(artifacts: list[Path], tmp_path: Path) -> None:
    larger = write_artifact(tmp_path / "larger", tiny_model(replace(TINY, vocab_size=TINY.vocab_size + 8)))
    namesake = write_artifact(tmp_path / "tiny-fp32", tiny_model())
    for draft, folders, hint in (
        (larger, artifacts, "must have the tokenizer"),
        (artifacts[0], artifacts[:1], "of another model"),
        (namesake, artifacts, "another name"),
        (tmp_path / "nowhere", artifacts, "no such artefact"),
    ):
        with pytest.raises(ValueError, match=rf"draft_model \(TTGPT_DRAFT_MODEL, --draft\): .*{hint}"):
            load_all(folders, None, lambda model: None, draft=draft)


def test_the_draft_is_told(settings: Settings) -> None:
    with serving(settings.model_copy(update={"draft_model": Path("tiny-int8"), "draft_tokens": 3})) as client:
        told = {model["model_id"]: model["draft"] for model in client.get("/info").json()["models"]}
        assert told == {"tiny-fp32": "tiny-int8", "tiny-int8": None}
        text = client.get("/metrics").text
        for position, there in (("0", True), ("2", True), ("3", False)):
            series = "ttgpt_spec_decode_num_accepted_tokens_per_pos_total"
            assert (f'{series}{{model_name="tiny-fp32",position="{position}"}} 0.0' in text) == there
        assert 'spec_decode_num_drafts_total{model_name="tiny-int8"}' not in text


def test_a_missed_golden_value_is_an_artifact_error(tmp_path: Path) -> None:
    folder = write_artifact(tmp_path / "tiny", tiny_model())
    models = load_all([folder], None, lambda model: None)
    other = tiny_model(seed=5).decoder()
    with pytest.raises(ArtifactError, match=r"golden\.top_logits"):
        check_golden(other, models.default.manifest.golden)
