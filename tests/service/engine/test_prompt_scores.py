"""Prompts are scored in the batch: bit for bit the same beside anything, in the same slots, a chunk per step."""

import asyncio
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from compressor.artifact.gpt2_config import GPT2Config
from compressor.formats import Dense
from compressor.runtime.model import Floats, Ids, Model, Read
from service.engine.engine import Engine
from service.engine.generation import Generation, Prompt, Token
from service.engine.models import LoadedModel, load
from service.engine.sampling import Sampling
from service.http.openai.prompts import completion_jobs
from service.http.openai.schemas import CompletionRequest
from service.settings import Settings
from tests.conftest import tiny_model, write_artifact
from tests.e2e.replica import Replica
from tests.service.conftest import generation, logits_of, sample, serving, wait_until
from tests.service.engine.test_batch import Rounds, running
from tests.service.engine.test_engine import Remembering

MINI = GPT2Config(vocab_size=16384, n_positions=512, n_embd=256, n_layer=6, n_head=8, n_inner=1024, eos_token_id=0)
PROMPTS = [[(7 * i + 3 * k) % 16384 for k in range(1, length)] for i, length in enumerate((64, 41, 2, 50, 17, 60, 33))]


class Counting(Model):
    """A decoder that counts the tokens that it reads and the rows that its head is multiplied by."""

    looked_up = multiplied = 0

    @classmethod
    def of(cls, decoder: Model) -> "Counting":
        counting = cls.__new__(cls)
        counting.__dict__.update(decoder.__dict__)
        return counting

    def read(self, tokens: Ids, *where: Any, **asked: Any) -> Read:
        self.looked_up += len(tokens)
        return super().read(tokens, *where, **asked)

    def logits(self, hidden: Floats) -> Floats:
        self.multiplied += len(hidden)
        return super().logits(hidden)


@pytest.fixture(scope="session")
def models(artifacts: list[Path]) -> list[LoadedModel]:
    return [load(folder) for folder in artifacts]


def scoring(model: LoadedModel, engine: Engine, ids: Sequence[int], new: int = 0, top: int = 2) -> Generation:
    prompt = Prompt(model=model, ids=tuple(ids), max_new_tokens=new, sampling=Sampling(seed=4))
    return Generation(prompt, engine.metrics, top=top, prompt_scored=True)


async def told(engine: Engine, job: Generation) -> tuple[list[Any], list[Token]]:
    """Return all log-probabilities of the prompt, and the tokens behind it."""
    engine.submit(job)
    tokens = [token async for token in job.mailbox.events()]
    assert job.scores is not None
    return list(zip(*(part.tolist() for part in job.scores.found), strict=True)), tokens


@pytest.mark.parametrize("number", [0, 1], ids=["fp32", "int8"])
def test_scores_are_the_same_beside_anything(settings: Settings, models: list[LoadedModel], number: int) -> None:
    """Where all blocks are integers, in chunks of any length, too."""
    model = models[number]

    async def test() -> None:
        async with running(settings, prefill_chunk=32) as engine:
            alone = [await told(engine, scoring(model, engine, ids)) for ids in PROMPTS]
        for chunk in (32, 32, 7, 128) if number else (32, 32):
            async with running(settings, prefill_chunk=chunk, max_batch=4) as engine:
                beside = [generation(model, engine.metrics, new=50, prompt=i) for i in range(1, 9)]
                for job in beside[:4]:
                    engine.submit(job)
                jobs = [scoring(model, engine, ids) for ids in PROMPTS]
                answers = await asyncio.gather(*(told(engine, job) for job in jobs))
                assert list(answers) == alone

    asyncio.run(test())
    assert [len(PROMPTS[i]) for i in range(3)] == [63, 40, 1]


@pytest.mark.parametrize("number", [0, 1], ids=["fp32", "int8"])
def test_what_is_written_behind_a_scored_prompt_is_what_is_written_anyway(
    settings: Settings, models: list[LoadedModel], number: int
) -> None:
    model = models[number]

    async def test() -> None:
        async with running(settings, prefill_chunk=16) as engine:
            for ids in PROMPTS[1:5]:
                scores, tokens = await told(engine, scoring(model, engine, ids, new=8))
                plain = Generation(scoring(model, engine, ids, new=8).prompt, engine.metrics, top=2)
                engine.submit(plain)
                assert [token async for token in plain.mailbox.events()] == tokens
                assert len(scores) == len(ids) - 1
                assert (await told(engine, scoring(model, engine, ids)))[0] == scores
                assert plain.read == len(ids) + 7  # each token once

    asyncio.run(test())


def test_scores_are_those_of_the_model(settings: Settings, tiny: LoadedModel) -> None:
    ids = PROMPTS[0] + [9]  # as long as the context
    assert len(ids) == tiny.context

    async def test() -> list[Any]:
        async with running(settings, kv_dtype="fp32") as engine:
            return (await told(engine, scoring(tiny, engine, ids, top=5)))[0]

    found = asyncio.run(test())
    expected = torch.from_numpy(logits_of(tiny.decoder, ids)).log_softmax(-1)[:-1]
    best = expected.topk(5)
    torch.testing.assert_close(torch.tensor([x for x, _, _ in found]), expected[range(len(ids) - 1), ids[1:]])
    assert [top for _, top, _ in found] == best.indices.tolist()
    torch.testing.assert_close(torch.tensor([values for _, _, values in found]), best.values)


@pytest.mark.parametrize("number", [0, 1], ids=["fp32", "int8"])
def test_a_step_reads_and_scores_no_more_than_a_chunk(
    settings: Settings, models: list[LoadedModel], number: int
) -> None:
    """Counted where every token passes: the table of positions; and the rows of the head by what they cost."""
    chunk, slots = 44, 8
    counting = Counting.of(models[number].decoder)
    model = replace(models[number], decoder=counting)
    cost = counting.head_cost
    assert cost == 22  # a large vocabulary on little blocks
    body = CompletionRequest(prompt=PROMPTS, max_tokens=0, echo=True, logprobs=1)

    async def test() -> None:
        async with running(settings, prefill_chunk=chunk, max_batch=slots) as engine:
            rounds = Rounds()
            engine.submit(rounds)
            await rounds.begin()
            writer = generation(model, engine.metrics, new=60)
            engine.submit(writer)
            await rounds.let(3)
            order = await completion_jobs(body, "x", model, engine.metrics)
            engine.submit_all(order.jobs)
            while not all(job.scores and not job.scores.left for job in order.jobs) and writer.generated < 60:
                before = (writer.generated, counting.looked_up, counting.multiplied)
                await rounds.let()
                assert writer.generated == before[0] + 1
                read = counting.looked_up - before[1]
                scored = counting.multiplied - before[2] - 1 - len(PROMPTS)  # of writing
                assert read <= chunk + slots
                assert read - slots + cost * scored <= chunk
            rounds.end()

    asyncio.run(test())


def test_a_client_that_hangs_up_in_the_middle_frees_its_slots(settings: Settings) -> None:
    engine = Remembering(settings.model_copy(update={"prefill_chunk": 4, "max_batch": 8}))
    name = {"model_name": "tiny-fp32"}

    async def hold() -> Rounds:
        rounds = Rounds()
        engine.submit(rounds)
        await rounds.begin()
        return rounds

    asked = {
        "prompt": [ids + [5] * (64 - len(ids)) for ids in PROMPTS * 4],
        "max_tokens": 0,
        "echo": True,
        "logprobs": 5,
    }
    with serving(settings, engine) as client:
        rounds = asyncio.run(hold())
        with ThreadPoolExecutor(1) as clients, httpx.Client(base_url=client.base_url, timeout=1) as impatient:
            call = clients.submit(impatient.post, "/v1/completions", json=asked)
            wait_until(lambda: len(engine.jobs) == 1 + 28)
            asyncio.run(rounds.let(6))
            assert sample(client, "ttgpt_num_requests_running", **name) == 1 + 8
            assert sample(client, "ttgpt_kv_cache_usage_ratio", **name) > 0
            assert isinstance(call.exception(), httpx.TimeoutException)
        wait_until(lambda: all(job.mailbox.cancelled for job in engine.jobs[1:]))
        asyncio.run(rounds.let(2))
        assert sample(client, "ttgpt_num_requests_running", **name) == 1  # the one that holds the rounds
        assert sample(client, "ttgpt_num_requests_waiting", **name) == 0
        assert sample(client, "ttgpt_kv_cache_usage_ratio", **name) == 0
        assert sample(client, "ttgpt_request_success_total", finished_reason="abort", **name) == 28
        rounds.end()


def test_a_scored_prompt_is_counted(settings: Settings) -> None:
    asked = {"prompt": PROMPTS, "max_tokens": 0, "echo": True, "logprobs": 0, "n": 2}
    read = sum(map(len, PROMPTS))
    with serving(settings) as client:
        answer = client.post("/v1/completions", json=asked)
        assert answer.json()["usage"] == {"prompt_tokens": read, "completion_tokens": 0, "total_tokens": read}
        assert [choice["finish_reason"] for choice in answer.json()["choices"]] == ["length"] * 14
        assert answer.headers["x-prompt-tokens"] == str(read)
        for metric, expected in (
            ("prompt_tokens_total", read),
            ("generation_tokens_total", 0),
            ("decode_steps_total", 0),
            ("request_success_total", len(PROMPTS)),
            ("request_prompt_tokens_count", len(PROMPTS)),
            ("request_prefill_time_seconds_count", len(PROMPTS)),
            ("e2e_request_latency_seconds_count", len(PROMPTS)),
            ("time_to_first_token_seconds_count", 0),
        ):
            labels = {"finished_reason": "length"} if "success" in metric else {}
            assert sample(client, f"ttgpt_{metric}", model_name="tiny-fp32", **labels) == expected, metric


def test_scoring_takes_no_more_memory_than_reading(tmp_path: Path) -> None:
    """A cache per prompt, beside that of the batch, took 200 MB here."""
    model = tiny_model(MINI)
    int8 = {name: Dense.of(form.dense(), "int8") for name, form in model.matrices().items()}
    folder = write_artifact(tmp_path / "mini", model.with_matrices(int8))
    draw = random.Random(0)
    prompts = [[draw.randrange(1, 16384) for _ in range(511)] for _ in range(32)]
    replica = Replica([folder], tmp_path / "log", log_level="error")
    try:
        replica.start()
        rss = []
        for fields in ({"max_tokens": 1}, {"max_tokens": 0, "echo": True, "logprobs": 5}):
            answer = httpx.post(f"{replica.url}/v1/completions", json={"prompt": prompts, **fields}, timeout=300)
            assert answer.status_code == 200
            rss.append(peak_mb(replica.process.pid))
        assert len(answer.json()["choices"][31]["logprobs"]["token_logprobs"]) == 511
    finally:
        replica.kill()
    print(f"peak {rss[0]:.0f} MB after reading, {rss[1]:.0f} MB after scoring")
    assert rss[1] - rss[0] < 50


def peak_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6
