"""Continuous batching: company changes nothing, long prompts and hang-ups hold up nobody, failures stay alone.

`Rounds` lets the engine do one round at a time, so that what happens in each can be counted.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from compressor.runtime.kv import Cache, pages_for
from compressor.runtime.model import Ids, Model, Read
from service.engine.adjustments import Adjustments
from service.engine.engine import Engine
from service.engine.generation import Generation, Prompt, Token
from service.engine.jobs import Job
from service.engine.kv_budget import LONG_TEXTS, kv_budget_bytes
from service.engine.models import LoadedModel, load
from service.engine.sampling import Sampling
from service.errors import ClientGoneError, RequestFailedError
from service.metrics import Metrics
from service.settings import Settings
from tests.service.conftest import generation

CLIFF = 20
PATIENCE_SECONDS = 60  # of the engine with a test that has failed in the middle of a round


@pytest.fixture(scope="session")
def both(artifacts: list[Any]) -> list[LoadedModel]:
    """The fp32 model and the int8 one."""
    return [load(folder) for folder in artifacts]


class Rounds(Job[int]):
    """Holds up every round of the engine until it is let go."""

    def __init__(self) -> None:
        super().__init__("tiny-fp32")
        self.ended = False
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)

    def step(self) -> bool:
        self._done.release()
        if not self._go.acquire(timeout=PATIENCE_SECONDS):
            self.ended = True
        if self.ended:
            self.mailbox.put(None)
        return self.ended

    async def begin(self) -> None:
        """Wait until the engine has come here for the first time."""
        await asyncio.to_thread(self._done.acquire)

    async def let(self, rounds: int = 1) -> None:
        """Let some rounds pass."""
        for _ in range(rounds):
            self._go.release()
            await asyncio.to_thread(self._done.acquire)

    def end(self) -> None:
        """Hold up nothing any more."""
        self.ended = True
        self._go.release()


class Cliff(Model):
    """A decoder whose positions end too early."""

    @classmethod
    def of(cls, decoder: Model) -> "Cliff":
        broken = cls.__new__(cls)
        broken.__dict__.update(decoder.__dict__)
        return broken

    def read(self, tokens: Ids, cache: Cache, slots: Ids, counts: Ids, **asked: Any) -> Read:
        if (cache.lengths[slots] + counts > CLIFF).any():
            raise ZeroDivisionError
        return super().read(tokens, cache, slots, counts, **asked)


@asynccontextmanager
async def running(settings: Settings, **update: Any) -> AsyncIterator[Engine]:
    engine = Engine(settings.model_copy(update=update), Metrics())
    engine.start()
    try:
        yield engine
    finally:
        await asyncio.to_thread(engine.close)


async def answer(engine: Engine, job: Generation, delay_seconds: float = 0) -> list[Token]:
    await asyncio.sleep(delay_seconds)
    engine.submit(job)
    return [token async for token in job.mailbox.events()]


def value(engine: Engine, name: str, model: str = "tiny-fp32") -> float:
    return engine.metrics.registry.get_sample_value(f"ttgpt_{name}", {"model_name": model}) or 0.0


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


def random_adjustments(random: Random, model: LoadedModel, ends: tuple[int, ...], new: int) -> Adjustments:
    """Return some that do nothing, one thing, or several."""
    least = random.choice([0, 0, random.randint(0, new)])
    return Adjustments(
        logit_bias=random.choice([(), (), tuple((random.randrange(16384), random.uniform(-9, 9)) for _ in range(300))]),
        repetition_penalty=random.choice([1.0, 1.0, 1.3]),
        frequency_penalty=random.choice([0.0, 0.0, 0.7, -1.5]),
        presence_penalty=random.choice([0.0, 0.0, 1.9, -0.4]),
        share_penalty=random.choice([0.0, 0.0, 2.0]),
        min_tokens=least,
        ends=(model.eos_id, *ends) if least else (),
    )


def random_prompt(random: Random, model: LoadedModel) -> Prompt:
    """Return one of those that clients may ask for."""
    length = random.randint(1, 40)
    new = random.randint(1, 64 - length)
    ends = random.choice([(), tuple(random.randrange(1, 16384) for _ in range(100))])
    how = Sampling(
        seed=random.choice([None, random.randrange(2**63)]),
        temperature=random.choice([0.5, 1.0, 1.7]),
        top_k=random.choice([None, None, 7, 50]),
        top_p=random.choice([1.0, 1.0, 0.3, 0.9]),
        typical_p=random.choice([1.0, 1.0, 0.5, 0.95]),
        min_p=random.choice([0.0, 0.0, 0.02, 0.5]),
        adjustments=random_adjustments(random, model, ends, new),
    )
    return Prompt(
        model=model,
        ids=tuple(random.randrange(1, 16384) for _ in range(length)),
        max_new_tokens=new,
        sampling=how,
        stops=random.choice([(), ("e", "th"), ("🙂",), tuple("abcdefghijklmnop")]),
        ignore_eos=random.random() < 0.2,
        stop_token_ids=ends,
    )


@pytest.mark.parametrize("max_batch", [3, 8])
def test_a_request_gets_the_same_in_any_company(settings: Settings, both: list[LoadedModel], max_batch: int) -> None:
    random = Random(max_batch)
    prompts = [random_prompt(random, model) for model in both for _ in range(12)]

    async def test() -> None:
        async with running(settings, max_batch=max_batch, prefill_chunk=16) as engine:
            alone = [await answer(engine, Generation(prompt, engine.metrics)) for prompt in prompts]
            for streamed in (True, False):
                order = random.sample(range(len(prompts)), len(prompts))
                jobs = [Generation(prompts[i], engine.metrics, streamed=streamed) for i in order]
                delays = [random.random() / 5 for _ in order]
                answers = await asyncio.gather(*map(answer, [engine] * len(jobs), jobs, delays))
                assert [alone[i] for i in order] == answers

    run(test)


def test_all_write_while_one_reads_a_long_prompt(settings: Settings, tiny: LoadedModel) -> None:
    """Each round reads one chunk of 8 and writes a token for everybody else."""

    async def test() -> None:
        async with running(settings, prefill_chunk=8) as engine:
            rounds = Rounds()
            engine.submit(rounds)
            await rounds.begin()
            writer, reader = (
                generation(tiny, engine.metrics, new=30),
                generation(tiny, engine.metrics, prompt=50, new=1),
            )
            engine.submit(writer)
            engine.submit(reader)
            await rounds.let()  # both have joined
            await rounds.let()  # the writer's own prompt, and what is left of the chunk
            assert (writer.generated, reader.read) == (1, 5)
            for chunk in range(1, 6):
                await rounds.let()
                assert (writer.generated, reader.read) == (1 + chunk, 5 + 8 * chunk)
            await rounds.let()
            assert (writer.generated, reader.read, reader.generated) == (7, 50, 1)
            rounds.end()
            assert len([token async for token in reader.mailbox.events()]) == 1
            assert len([token async for token in writer.mailbox.events()]) == 30

    run(test)


def test_prompts_share_a_chunk_where_tokens_are_computed_side_by_side(
    settings: Settings, both: list[LoadedModel]
) -> None:
    async def test() -> None:
        async with running(settings, prefill_chunk=8) as engine:
            rounds = Rounds()
            engine.submit(rounds)
            await rounds.begin()
            jobs = [generation(both[1], engine.metrics, prompt=n, new=3) for n in (3, 4, 20)]
            for job in jobs:
                engine.submit(job)
            await rounds.let()  # all have joined
            seen = []
            for _ in range(4):
                await rounds.let()
                seen.append([(job.read, job.generated) for job in jobs])
            assert seen == [
                [(3, 1), (4, 1), (1, 0)],
                [(4, 2), (5, 2), (9, 0)],
                [(5, 3), (6, 3), (17, 0)],
                [(5, 3), (6, 3), (20, 1)],
            ]
            rounds.end()
            assert [len([token async for token in job.mailbox.events()]) for job in jobs] == [3, 3, 3]

    run(test)


def test_who_goes_away_leaves_before_the_next_step(settings: Settings, tiny: LoadedModel) -> None:
    async def test() -> None:
        async with running(settings, max_batch=2) as engine:
            rounds = Rounds()
            engine.submit(rounds)
            await rounds.begin()
            jobs = [generation(tiny, engine.metrics, new=40) for _ in range(3)]
            for job in jobs:
                engine.submit(job)
            gone, neighbour, waiting = jobs
            await rounds.let(6)
            written = gone.generated
            assert written > 0
            assert (waiting.slot, value(engine, "num_requests_waiting")) == (-1, 1)
            gone.mailbox.cancel()
            await rounds.let(2)  # the round in which it leaves, and the one that lets the next in
            assert (gone.generated, waiting.slot) == (written, gone.slot)
            rounds.end()
            with pytest.raises(ClientGoneError):
                [token async for token in gone.mailbox.events()]
            for job in (neighbour, waiting):
                assert len([token async for token in job.mailbox.events()]) == 40

    run(test)


def test_a_failure_in_a_shared_step_is_its_own_requests(settings: Settings, tiny: LoadedModel) -> None:
    broken = replace(tiny, decoder=Cliff.of(tiny.decoder))
    how = [Sampling(seed=seed) for seed in range(4)]

    async def test() -> None:
        async with running(settings) as engine:
            sound = [await answer(engine, generation(tiny, engine.metrics, new=17, how=h)) for h in how]
        async with running(settings) as engine:
            falling = generation(broken, engine.metrics, new=40)
            jobs = [generation(broken, engine.metrics, new=17, how=h) for h in how]
            answers = await asyncio.gather(
                answer(engine, falling), *(answer(engine, job) for job in jobs), return_exceptions=True
            )
            assert isinstance(answers[0], RequestFailedError)
            assert answers[1:] == sound
            assert falling.generated == CLIFF - 2  # positions 3 to 19, after the first token
            assert await answer(engine, generation(broken, engine.metrics, new=17, how=how[0])) == sound[0]

    run(test)


def test_closing_writes_all_texts_to_their_end(settings: Settings, tiny: LoadedModel) -> None:
    async def test() -> None:
        async with running(settings, max_batch=2) as engine:
            jobs = [generation(tiny, engine.metrics, new=20) for _ in range(7)]
            for job in jobs:
                engine.submit(job)
        assert [len([t async for t in job.mailbox.events()]) for job in jobs] == [20] * 7

    run(test)


def test_metrics_of_a_batch(settings: Settings, tiny: LoadedModel) -> None:
    async def test() -> None:
        async with running(settings, max_batch=4) as engine:
            rounds = Rounds()
            engine.submit(rounds)
            await rounds.begin()
            jobs = [generation(tiny, engine.metrics, new=10) for _ in range(3)]
            for job in jobs:
                engine.submit(job)
            await rounds.let(5)
            pages = sum(pages_for(job.read) for job in jobs)
            assert value(engine, "batch_size") == 3
            assert value(engine, "num_requests_running") == 3 + 1
            assert value(engine, "kv_cache_usage_ratio") == pages / (LONG_TEXTS * pages_for(tiny.context))
            room = LONG_TEXTS * tiny.context * tiny.decoder.kv_bytes_per_token("fp16")
            assert engine.metrics.registry.get_sample_value("ttgpt_kv_cache_bytes") == room
            rounds.end()
            for job in jobs:
                assert [token async for token in job.mailbox.events()]
        for name in ("batch_size", "num_requests_running", "kv_cache_usage_ratio"):
            assert value(engine, name) == 0
        assert value(engine, "decode_steps_total") < 3 * 9  # most were shared

    run(test)


def test_too_little_for_one_text_is_refused_with_the_numbers(settings: Settings, tiny: LoadedModel) -> None:
    text = tiny.context * tiny.decoder.kv_bytes_per_token("fp32")
    fitting = settings.model_copy(update={"kv_bytes": text, "kv_dtype": "fp32"})
    assert kv_budget_bytes([tiny, tiny], fitting) == text
    with pytest.raises(ValueError, match=f"{text:,} bytes.* {text - 1:,} .*fp16, do not.*TTGPT_KV_BYTES to {text} or"):
        kv_budget_bytes([tiny], fitting.model_copy(update={"kv_bytes": text - 1}))
    assert kv_budget_bytes([tiny], settings) == LONG_TEXTS * text / 2
