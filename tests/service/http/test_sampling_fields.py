"""What clients ask for besides temperature and top-p, on OpenAI's routes and TGI's: by definition, streamed or not."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from random import Random
from statistics import fmean
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from compressor.formats import Dense
from service.engine.adjustments import Adjustments
from service.engine.models import LoadedModel
from service.http.words import released
from service.settings import Settings
from tests.conftest import TINY, tiny_model, write_artifact
from tests.service.conftest import logits_of, serving
from tests.service.engine.test_adjustments import by_definition

TEXT = "The old man looked at the sea"
KV_DTYPE = Settings.model_fields["kv_dtype"].default
OPENAI, TGI = "/v1/completions", "/generate"


def ask(client: httpx.Client, route: str, text: Any = TEXT, **fields: Any) -> dict[str, Any]:
    """Return an answer without what belongs to its request; `max_tokens` is the length on all routes."""
    answer = client.post(route, json=body_of(route, text, **fields))
    assert answer.status_code == 200, answer.text
    return {key: value for key, value in answer.json().items() if key not in ("id", "created")}


def body_of(route: str, text: Any = TEXT, **fields: Any) -> dict[str, Any]:
    if route == OPENAI:
        return {"prompt": text, **fields}
    if "max_tokens" in fields:
        fields["max_new_tokens"] = fields.pop("max_tokens")
    return {"inputs": text, "parameters": {"details": True, **fields}}


def text_of(answer: dict[str, Any]) -> str:
    return str(answer["generated_text"] if "generated_text" in answer else answer["choices"][0]["text"])


def greedy(route: str) -> dict[str, Any]:
    return {"temperature": 0} if route == OPENAI else {}


def events(client: httpx.Client, route: str, text: str = TEXT, **fields: Any) -> list[dict[str, Any]]:
    path = route if route == OPENAI else "/generate_stream"
    answer = client.post(path, json=body_of(route, text, **fields) | {"stream": True})
    assert answer.status_code == 200, answer.text
    told = [piece.strip() for piece in answer.text.split("data:")]
    return [json.loads(piece) for piece in told if piece not in ("", "[DONE]")]


def written(client: httpx.Client, **fields: Any) -> list[int]:
    """Return the tokens of a text, as TGI's route tells them."""
    return [token["id"] for token in ask(client, TGI, **fields)["details"]["tokens"]]


BIAS = {str(i): (i % 5) - 2.0 for i in range(0, 3000, 10)}
FIELDS: dict[str, dict[str, Any]] = {
    "logit_bias": {"logit_bias": BIAS},
    "presence_penalty": {"presence_penalty": 1.5},
    "frequency_penalty": {"frequency_penalty": 0.8},
    "reward": {"frequency_penalty": -2},
    "min_tokens": {"min_tokens": 9, "stop_token_ids": list(range(1, 129)), "ignore_eos": True},
    "all": {
        "logit_bias": BIAS, "presence_penalty": 0.3, "frequency_penalty": 0.5, "repetition_penalty": 1.1,
        "min_tokens": 12,
    },
}  # fmt: skip


@pytest.mark.parametrize("route", [OPENAI, TGI])
@pytest.mark.parametrize("name", FIELDS)
def test_greedy_texts_are_by_definition(client: httpx.Client, tiny: LoadedModel, name: str, route: str) -> None:
    """OpenAI's frequency penalty counts what was written; TGI's is of the share of the whole text."""
    fields, new = FIELDS[name], 12
    frequency = fields.get("frequency_penalty", 0.0)
    how = Adjustments(
        logit_bias=tuple((int(key), value) for key, value in fields.get("logit_bias", {}).items()),
        repetition_penalty=fields.get("repetition_penalty", 1.0),
        presence_penalty=fields.get("presence_penalty", 0.0),
        frequency_penalty=frequency if route == OPENAI else 0.0,
        share_penalty=frequency if route == TGI else 0.0,
        min_tokens=fields.get("min_tokens", 0),
        ends=(tiny.eos_id, *fields.get("stop_token_ids", ())),
    )
    ids = tiny.encode(TEXT)
    read = len(ids)
    for _ in range(new):
        logits = logits_of(tiny.decoder, ids, KV_DTYPE)[-1]
        ids.append(int(np.argmax(by_definition(logits, how, ids, read))))
        if ids[-1] in fields.get("stop_token_ids", ()):
            break
    asked = {"max_tokens": new, "ignore_eos": True, **greedy(route), **fields}
    if route == TGI:
        assert written(client, **asked) == ids[read:]
    else:
        told = ask(client, route, logprobs=0, **asked)["choices"][0]["logprobs"]["tokens"]
        assert "".join(told) == "".join(released(ids[read:], tiny))


STREAMED: list[dict[str, Any]] = [
    {"min_p": 0.01, "seed": 1},
    {"min_p": 0.2, "top_k": 40, "top_p": 0.9, "typical_p": 0.9, "temperature": 1.5, "seed": 2},
    {"typical_p": 0.3, "seed": 3},
    {"logit_bias": BIAS, "presence_penalty": 1, "frequency_penalty": 1, "seed": 4},
    {"stop_token_ids": list(range(0, 16384, 128)), "min_tokens": 4, "seed": 5},
    {"stop": list("abcdefghijklmnop"), "min_tokens": 6, "seed": 6},
    {"ignore_eos": True, "min_tokens": 20, "seed": 7},
]


@pytest.mark.parametrize("route", [OPENAI, TGI])
@pytest.mark.parametrize("fields", STREAMED, ids=lambda fields: " ".join(fields))
def test_a_joined_stream_is_the_whole(client: httpx.Client, fields: dict[str, Any], route: str) -> None:
    fields = {"max_tokens": 20, **({} if route == OPENAI else {"do_sample": True}), **fields}
    whole, told = ask(client, route, **fields), events(client, route, **fields)
    if route == OPENAI:
        assert "".join(chunk["choices"][0]["text"] for chunk in told) == text_of(whole)
        assert told[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    else:
        assert [event["token"] for event in told] == whole["details"]["tokens"]
        assert told[-1]["generated_text"] == whole["generated_text"]
        (compat,) = client.post("/", json=body_of(route, **fields)).json()
        assert compat == whole


def test_the_same_on_both_routes(client: httpx.Client) -> None:
    """Where the definitions are the same, for sampled tokens, too."""
    for fields in STREAMED:
        fields = {"max_tokens": 20, **fields, "frequency_penalty": 0}
        assert text_of(ask(client, OPENAI, **fields)) == text_of(ask(client, TGI, do_sample=True, **fields))


@pytest.mark.parametrize("route", [OPENAI, TGI])
def test_a_stop_token_ends_the_text_and_is_no_part_of_it(client: httpx.Client, tiny: LoadedModel, route: str) -> None:
    ids = written(client, max_tokens=20)
    at = next(at for at in range(5, 20) if ids[at] not in ids[:at])
    answer = ask(client, route, max_tokens=20, stop_token_ids=[ids[at]], **greedy(route))
    assert text_of(answer) == "".join(released(ids[:at], tiny))
    if route == OPENAI:
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert answer["usage"]["completion_tokens"] == at + 1
    else:
        assert answer["details"]["finish_reason"] == "stop_sequence"
        assert [token["id"] for token in answer["details"]["tokens"]] == ids[: at + 1]
    late = ask(client, route, max_tokens=20, stop_token_ids=[ids[at]], min_tokens=at + 1, **greedy(route))
    assert len(text_of(late)) > len(text_of(answer))
    assert text_of(late).startswith(text_of(answer))


@pytest.mark.parametrize("route", [OPENAI, TGI])
def test_stop_strings_count_behind_the_least_tokens(client: httpx.Client, tiny: LoadedModel, route: str) -> None:
    fields: dict[str, Any] = {"max_tokens": 20, **greedy(route)}
    text = text_of(ask(client, route, **fields))
    ids = written(client, max_tokens=20)
    first, later = ("".join(released(ids[:count], tiny)) for count in (6, 10))
    stop = first[-3:]
    assert text_of(ask(client, route, stop=[stop], **fields)) == text[: text.index(stop)]
    behind = text.find(stop, len(first) - 2)
    expected = text if behind < 0 else text[:behind]
    assert text_of(ask(client, route, stop=[stop], min_tokens=6, **fields)) == expected
    across = later[len(first) - 2 :]  # begins in the first tokens, ends behind them
    assert text_of(ask(client, route, stop=[across], min_tokens=6, **fields)) == text[: text.index(across)]


@pytest.fixture(scope="module")
def ending(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a model whose texts often end."""
    model = tiny_model()
    table, towards = model.wte.dense().clone(), model.vectors()["ln_f.bias"].decode()
    table[TINY.eos_token_id] = 12 * towards / towards.norm()
    folder = tmp_path_factory.mktemp("models") / "ends"
    write_artifact(folder, model.with_matrices({"lm_head": Dense.of(table, "fp32")}))
    with serving(Settings(models=(folder,), threads=1)) as client:
        yield client


@pytest.mark.parametrize("route", [OPENAI, TGI])
def test_no_text_ends_before_the_least_tokens(ending: httpx.Client, route: str) -> None:
    """And the token that ends texts is not among these, even where it ends nothing; as in vLLM."""
    lengths = []
    for seed in range(8):
        fields: dict[str, Any] = {"max_tokens": 30, "seed": seed}
        fields |= {} if route == OPENAI else {"do_sample": True}
        for least in (0, 1, 11, 30):
            answer = ask(ending, route, min_tokens=least, **fields)
            count = answer["usage"]["completion_tokens"] if route == OPENAI else answer["details"]["generated_tokens"]
            assert least <= count
            lengths += [count] * (least == 11)
    assert min(lengths) < 30
    fields = {"max_tokens": 30, "min_tokens": 11, "ignore_eos": True, "do_sample": True}
    texts = [written(ending, seed=seed, **fields) for seed in range(8)]
    assert not any(TINY.eos_token_id in ids[:11] for ids in texts)
    assert any(TINY.eos_token_id in ids[11:] for ids in texts)


def test_the_best_of_several(client: httpx.Client) -> None:
    fields: dict[str, Any] = {"text": [TEXT, "x"], "max_tokens": 9, "seed": 5}
    four = ask(client, OPENAI, n=4, logprobs=0, **fields)
    means = [fmean(choice["logprobs"]["token_logprobs"]) for choice in four["choices"]]
    for n in (1, 2, 3):
        best = ask(client, OPENAI, n=n, best_of=4, **fields)
        order = [at for base in (0, 4) for at in sorted(range(base, base + 4), key=lambda i: -means[i])[:n]]
        assert [choice["text"] for choice in best["choices"]] == [four["choices"][at]["text"] for at in order]
        assert [choice["index"] for choice in best["choices"]] == list(range(2 * n))
        assert all(choice["logprobs"] is None for choice in best["choices"])
        assert best["usage"] == four["usage"]
    told = ask(client, OPENAI, n=1, best_of=4, logprobs=0, echo=True, **fields)["choices"]
    expected = ask(client, OPENAI, n=4, logprobs=0, echo=True, **fields)["choices"]
    for choice, base in zip(told, (0, 4), strict=True):
        assert {**choice, "index": 0} == {**max(expected[base:][:4], key=lambda c: means[c["index"]]), "index": 0}
    assert ask(client, OPENAI, n=4, best_of=4, logprobs=0, **fields) == four
    assert events(client, OPENAI, n=2, best_of=2, max_tokens=3)


def test_the_best_of_several_in_the_shape_of_tgi(client: httpx.Client) -> None:
    fields: dict[str, Any] = {"max_tokens": 9, "do_sample": True, "top_n_tokens": 2}
    alone = [ask(client, TGI, seed=seed, **fields) for seed in range(3, 7)]
    means = [fmean(token["logprob"] for token in answer["details"]["tokens"]) for answer in alone]
    best = ask(client, TGI, seed=3, best_of=4, **fields)
    others = best["details"].pop("best_of_sequences")
    assert best == alone.pop(int(np.argmax(means)))
    assert others == [{"generated_text": other["generated_text"], **other["details"]} for other in alone]
    plain = ask(client, TGI, seed=3, best_of=4, details=False, max_tokens=9, do_sample=True)
    assert plain == {"generated_text": best["generated_text"]}


@pytest.mark.parametrize("count", [1, 5, 20])
def test_the_likeliest_tokens_are_the_models(client: httpx.Client, tiny: LoadedModel, count: int) -> None:
    """Whatever the request does to its logits."""
    fields: dict[str, Any] = {"max_tokens": 6, "presence_penalty": 2, "logit_bias": BIAS, "seed": 3}
    (choice,) = ask(client, OPENAI, logprobs=count, **fields)["choices"]
    ids = tiny.encode(TEXT)
    likely = torch.from_numpy(logits_of(tiny.decoder, ids, KV_DTYPE)[-1]).log_softmax(-1).topk(count)
    first = choice["logprobs"]["top_logprobs"][0]
    assert count <= len(first) <= count + 1
    assert list(first.values())[:count] == pytest.approx(likely.values.tolist(), abs=1e-4)
    if count > 5:
        return
    whole = ask(client, TGI, top_n_tokens=count, do_sample=True, **fields)["details"]
    assert [token["id"] for token in whole["top_tokens"][0]] == likely.indices.tolist()
    assert [token["logprob"] for token in whole["top_tokens"][0]] == list(first.values())[:count]
    for token in (token for top in whole["top_tokens"] for token in top):
        assert token["text"] == tiny.tokenizer.decode([token["id"]], skip_special_tokens=False)
    streamed = events(client, TGI, top_n_tokens=count, do_sample=True, **fields)
    assert [event["top_tokens"] for event in streamed] == whole["top_tokens"]


def test_nothing_is_told_that_was_not_asked_for(client: httpx.Client) -> None:
    (choice,) = ask(client, OPENAI, best_of=2, max_tokens=3)["choices"]
    assert choice["logprobs"] is None
    details = ask(client, TGI, max_tokens=3)["details"]
    assert details.keys() == {"finish_reason", "generated_tokens", "seed", "prefill", "tokens"}
    assert all(event.keys() == {"index", "token", "generated_text", "details"} for event in events(client, TGI))


@pytest.mark.parametrize("count", [1, 3, 60])
def test_the_end_of_a_prompt(client: httpx.Client, tiny: LoadedModel, count: int) -> None:
    ids = tiny.encode(TEXT)
    asked: dict[str, Any] = {"max_tokens": 4, "seed": 3}
    cut = ask(client, OPENAI, truncate_prompt_tokens=count, **asked)
    assert cut == ask(client, OPENAI, ids[-count:], **asked)
    assert cut == ask(client, OPENAI, ids, truncate_prompt_tokens=count, **asked)
    assert cut["usage"]["prompt_tokens"] == min(count, len(ids))
    echo = ask(client, OPENAI, truncate_prompt_tokens=count, echo=True, logprobs=2, **asked)["choices"][0]
    assert echo["text"].startswith("".join(released(ids[-count:], tiny)))
    assert "".join(echo["logprobs"]["tokens"]) == echo["text"]
    details = ask(client, TGI, truncate=count, decoder_input_details=True, do_sample=True, **asked)
    assert [token["id"] for token in details["details"]["prefill"]] == ids[-count:]
    assert text_of(details) == text_of(cut)
    last = events(client, TGI, truncate=count, do_sample=True, **asked)[-1]
    assert (last["generated_text"], last["details"]["input_length"]) == (text_of(cut), min(count, len(ids)))
    full = ask(client, TGI, truncate=count, return_full_text=True, do_sample=True, **asked)
    assert text_of(full) == TEXT + text_of(cut)


def test_as_much_of_a_prompt_as_fits(client: httpx.Client, tiny: LoadedModel) -> None:
    text = "The sea, " * 70
    ids = tiny.encode(text)
    assert len(ids) > tiny.context
    one = ask(client, OPENAI, text, truncate_prompt_tokens=-1, seed=1)
    assert one == ask(client, OPENAI, ids[1 - tiny.context :], max_tokens=1, seed=1)
    scored = ask(client, OPENAI, text, truncate_prompt_tokens=-1, max_tokens=0, echo=True, logprobs=0)
    assert scored["usage"]["prompt_tokens"] == tiny.context
    assert ask(client, OPENAI, truncate_prompt_tokens=-1, seed=1) == ask(client, OPENAI, seed=1)


def test_the_tokens_of_a_prompt(client: httpx.Client, tiny: LoadedModel) -> None:
    text = "naïve 🙂 sea"
    ids = tiny.encode(text)
    expected = torch.from_numpy(logits_of(tiny.decoder, ids, KV_DTYPE)).log_softmax(-1)[range(len(ids) - 1), ids[1:]]
    for details in (True, False):
        answer = ask(client, TGI, text, decoder_input_details=True, details=details, max_tokens=3)
        prefill = answer["details"]["prefill"]
        assert [token["id"] for token in prefill] == ids
        assert "".join(token["text"] for token in prefill) == text
        assert prefill[0]["logprob"] is None
        assert torch.allclose(torch.tensor([token["logprob"] for token in prefill[1:]]), expected, atol=1e-4)
    assert text_of(answer) == text_of(ask(client, TGI, text, max_tokens=3))


def random_body(random: Random, route: str) -> dict[str, Any]:
    """Return any of what clients may send."""
    new = random.randint(1, 30)
    several = random.randint(1, 4)
    fields: dict[str, Any] = {
        "max_tokens": new,
        "seed": random.randrange(2**63),
        "temperature": random.choice([0.5, 0.9, 1.7]),
        "top_k": random.choice([None, -1, 0, 50]),
        "top_p": random.choice([1.0, 0.9]),
        "typical_p": random.choice([1.0, 1.0, 0.9]),
        "min_p": random.choice([0.0, 0.05]),
        "frequency_penalty": random.choice([0, 0.5, -1]),
        "presence_penalty": random.choice([0, 1.5]),
        "repetition_penalty": random.choice([1.0, 1.2]),
        "logit_bias": random.choice([None, BIAS]),
        "min_tokens": random.choice([0, new, new // 2]),
        "ignore_eos": random.random() < 0.3,
        "stop_token_ids": random.choice([None, list(range(0, 16384, 128))]),
        "stop": random.choice([None, list("abcdefghijklmnop")]),
        "best_of": several,
    }
    cut = random.choice([None, 3, 60])
    if route == OPENAI:
        fields |= {
            "truncate_prompt_tokens": cut,
            "n": random.randint(1, several),
            "logprobs": random.choice([None, 20]),
        }
        return fields | {"echo": random.random() < 0.3}
    fields |= {"truncate": cut, "top_n_tokens": random.choice([None, 5])}
    return fields | {"decoder_input_details": random.random() < 0.3}


def test_a_request_gets_the_same_in_any_company(client: httpx.Client) -> None:
    random = Random(17)
    asked = [(route, random_body(random, route)) for route in (OPENAI, TGI) for _ in range(16)]
    alone = [ask(client, route, **fields) for route, fields in asked]
    with ThreadPoolExecutor(12) as pool:
        together = pool.map(lambda one: ask(client, one[0], **one[1]), asked)
        assert list(together) == alone


def test_the_embedding_of_a_text_has_the_width_of_the_model(client: httpx.Client) -> None:
    for value in (5, 32, "x"):
        answer = client.post("/v1/embeddings", json={"input": "x", "dimensions": value})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "dimensions"
        assert "the model's own width; leave it out" in answer.json()["error"]["message"]
    assert client.post("/v1/embeddings", json={"input": "x", "dimensions": None}).status_code == 200


def test_there_are_as_many_stops_as_are_legal(client: httpx.Client) -> None:
    for route in (OPENAI, TGI):
        fields = {"max_tokens": 20, **greedy(route)}
        text = text_of(ask(client, route, **fields))
        stops = [f"no such text {i}" for i in range(15)]
        assert text_of(ask(client, route, stop=stops, **fields)) == text
        assert text_of(ask(client, route, stop=[*stops, text[5:9]], **fields)) == text[: text.index(text[5:9])]
