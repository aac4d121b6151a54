"""Pages of the KV cache: nobody's text depends on who shares them, who waits for them, or what was forgotten."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.runtime.kv import PAGE_TOKENS, Cache, pages_for
from service.engine.generation import Generation, Prompt
from service.engine.models import LoadedModel
from service.engine.pages import Pages, Pool
from service.engine.sampling import Sampling
from service.errors import ClientGoneError
from service.settings import Settings
from tests.conftest import TINY
from tests.service.engine.test_batch import Rounds, answer, both, random_prompt, run, running, value

__all__ = ["both"]
BLOCKS = pages_for(TINY.n_positions)
SLOTS = 4


class Text:
    """What a slot of a cache stands for: its tokens, as far as they are read."""

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = list(ids)


class Filled:
    """Pages in which every token leaves itself, so that what a slot reads can be compared with its text."""

    def __init__(self, pool: Pool, *, shares: bool = True) -> None:
        pages = max(1, pool.size_bytes // Cache(TINY, 1, PAGE_TOKENS, pages=1).page_bytes)
        self.cache = Cache(TINY, SLOTS, TINY.n_positions, pages=pages)
        self.pages = Pages(self.cache, pool, shares=shares)
        self.texts: dict[int, Text] = {}

    def read(self, slot: int, tokens: int) -> None:
        """Read the next tokens of a slot's text."""
        start = int(self.cache.lengths[slot])
        for position in range(start, start + tokens):
            page = self.cache.table[slot, position // PAGE_TOKENS]
            self.cache.values[page, :, :, position % PAGE_TOKENS] = self.texts[slot].ids[position]
        self.cache.lengths[slot] = start + tokens

    def check(self) -> None:
        """Every text has its own tokens."""
        for slot, text in self.texts.items():
            length = int(self.cache.lengths[slot])
            held = self.cache.values[self.cache.table[slot, : pages_for(length)], 0, 0, :, 0].reshape(-1)[:length]
            assert held.tolist() == text.ids[:length]


@given(st.data())
def test_slots_hold_their_own_text_and_the_budget_is_kept(data: st.DataObject) -> None:
    size = Cache(TINY, 1, PAGE_TOKENS, pages=1).page_bytes
    pool = Pool(data.draw(st.integers(BLOCKS, 3 * BLOCKS)) * size)
    models = [Filled(pool), Filled(pool, shares=data.draw(st.booleans()))]
    for _ in range(data.draw(st.integers(1, 40))):
        model = data.draw(st.sampled_from(models))
        slot = data.draw(st.integers(0, SLOTS - 1))
        if slot not in model.texts:
            same = data.draw(st.integers(0, TINY.n_positions - 1))  # tokens that it begins with like others
            other = data.draw(st.integers(2, 3))
            model.texts[slot] = Text([1] * same + [other] * (TINY.n_positions - same))
            found = model.pages.match(slot, model.texts[slot].ids)
            assert found % PAGE_TOKENS == 0
            assert found < TINY.n_positions
        elif data.draw(st.booleans()):
            left = TINY.n_positions - int(model.cache.lengths[slot])
            count = data.draw(st.integers(0, left))
            if model.pages.extend(slot, int(model.cache.lengths[slot]) + count):
                model.read(slot, count)
                model.pages.remember(slot, model.texts[slot].ids)
        else:
            model.pages.release(slot)
            del model.texts[slot]
        for one in models:
            one.check()
        assert pool.used_bytes <= pool.size_bytes
        assert pool.used_bytes - pool.idle_bytes == sum(one.pages.held_bytes for one in models)
    for model in models:
        for slot in tuple(model.texts):
            model.pages.release(slot)
        assert model.pages.held == 0
    assert pool.left_bytes == pool.size_bytes


def test_what_was_used_last_is_forgotten_last() -> None:
    size = Cache(TINY, 1, PAGE_TOKENS, pages=1).page_bytes
    model = Filled(Pool(4 * size))
    for slot, token in ((0, 7), (1, 8), (0, 7), (2, 9)):  # two pages each, and the third text takes those of the second
        model.texts[slot] = Text([token] * (2 * PAGE_TOKENS + 1))
        known = model.pages.match(slot, model.texts[slot].ids)
        assert model.pages.extend(slot, 2 * PAGE_TOKENS)
        model.read(slot, 2 * PAGE_TOKENS - known)
        model.pages.remember(slot, model.texts[slot].ids)
        model.pages.release(slot)
    assert model.pages.match(0, [8] * TINY.n_positions) == 0
    assert model.pages.match(0, [7] * TINY.n_positions) == 2 * PAGE_TOKENS


def beginnings(random: Random, model: LoadedModel) -> list[Prompt]:
    """Return prompts of which many begin alike."""
    shared = [tuple(random.randrange(1, 16384) for _ in range(random.choice([20, 36]))) for _ in range(2)]
    prompts = []
    for _ in range(14):
        prompt = random_prompt(random, model)
        ids = (random.choice([*shared, ()]) + prompt.ids)[:50]
        prompts.append(replace(prompt, ids=ids, max_new_tokens=model.context - len(ids)))
    return prompts


@pytest.mark.parametrize("room", [1, 2, 8])
@pytest.mark.parametrize("seed", range(3))
def test_texts_are_the_same_whatever_is_shared_or_sent_back(
    settings: Settings, both: list[LoadedModel], seed: int, room: int
) -> None:
    """Of two models, in a KV cache with room for so many long texts, with scored prompts among them."""
    random = Random(f"{seed} {room}")
    prompts = [prompt for model in both for prompt in beginnings(random, model)]
    asked: list[dict[str, Any]] = [{"prompt_scored": random.random() < 0.3, "top": 2} for _ in prompts]
    size = max(model.context * model.decoder.kv_bytes_per_token("fp16") for model in both)

    async def test() -> None:
        async with running(settings, max_batch=1, prefix_cache=False) as engine:
            jobs = [Generation(prompt, engine.metrics, **how) for prompt, how in zip(prompts, asked, strict=True)]
            plain = [await answer(engine, job) for job in jobs]
            scores = [job.scores.found if job.scores else () for job in jobs]
            assert value(engine, "prefix_cache_hits_total") == 0
        async with running(settings, kv_bytes=room * size, prefill_chunk=16) as engine:
            for together in (True, False):
                jobs = [Generation(prompt, engine.metrics, **how) for prompt, how in zip(prompts, asked, strict=True)]
                order = random.sample(range(len(jobs)), len(jobs))
                if together:
                    engine.submit_all([jobs[i] for i in order])
                    found = [[token async for token in jobs[i].mailbox.events()] for i in order]
                else:
                    delays = [random.random() / 5 for _ in order]
                    found = await asyncio.gather(*map(answer, [engine] * len(jobs), [jobs[i] for i in order], delays))
                assert found == [plain[i] for i in order]
                for job, expected in zip(jobs, scores, strict=True):
                    for own, others in zip(job.scores.found if job.scores else (), expected, strict=True):
                        np.testing.assert_array_equal(own, others)
            names = ("tiny-fp32", "tiny-int8")
            assert sum(value(engine, "prefix_cache_hits_total", name) for name in names) > 0 or room == 1
            assert sum(value(engine, "num_preemptions_total", name) for name in names) > 0 or room > 1
            assert all(value(engine, "kv_cache_usage_ratio", name) == 0 for name in names)

    run(test)


def prompt_of(model: LoadedModel, ids: Sequence[int], new: int) -> Prompt:
    return Prompt(model=model, ids=tuple(ids), max_new_tokens=new, sampling=Sampling())


def test_the_youngest_waits_when_there_is_no_room(settings: Settings, tiny: LoadedModel) -> None:
    """It is the first to go on, frees what it holds if its client leaves, and nobody passes it."""
    text = tiny.context * tiny.decoder.kv_bytes_per_token("fp16")

    async def test() -> None:
        async with running(settings, kv_bytes=text, prefix_cache=False) as engine:
            rounds = Rounds()
            engine.submit(rounds)
            await rounds.begin()
            old, young = (
                Generation(prompt_of(tiny, range(first, first + 14), 50), engine.metrics) for first in (1, 99)
            )
            engine.submit_all([old, young])
            await rounds.let(2)
            late = Generation(prompt_of(tiny, range(40), 5), engine.metrics)
            engine.submit(late)
            while not young.waits:
                await rounds.let()
            assert (old.waits, late.waits, late.generated) == (False, True, 0)
            assert value(engine, "num_preemptions_total") == 1
            assert value(engine, "num_requests_waiting") == 2
            written = young.generated
            assert written > 0
            young.mailbox.cancel()
            rounds.end()
            with pytest.raises(ClientGoneError):
                [token async for token in young.mailbox.events()]
            assert len([token async for token in old.mailbox.events()]) == 50
            assert len([token async for token in late.mailbox.events()]) == 5
            assert young.generated == written
        assert value(engine, "kv_cache_usage_ratio") == 0

    run(test)


def test_those_that_begin_alike_read_it_once(settings: Settings, tiny: LoadedModel) -> None:
    """Also if they come together: while the first one reads, the others wait for it."""

    async def test() -> None:
        async with running(settings, prefill_chunk=16) as engine:
            jobs = [Generation(prompt_of(tiny, [*range(1, 49), last], 4), engine.metrics) for last in range(100, 109)]
            rounds = Rounds()
            engine.submit(rounds)
            await rounds.begin()
            engine.submit_all(jobs)
            await rounds.let(6)  # joined, 4 rounds of 16 tokens, of which the last has room for all
            rounds.end()
            assert all(job.read >= 49 for job in jobs)
            assert value(engine, "prefix_cache_queries_total") == 9 * 49
            assert value(engine, "prefix_cache_hits_total") == 8 * 48
            for job in jobs:
                assert len([token async for token in job.mailbox.events()]) == 4
            again = Generation(prompt_of(tiny, jobs[0].ids, 1), engine.metrics)  # what was written is known, too
            await answer(engine, again)
            assert value(engine, "prefix_cache_hits_total") == 8 * 48 + 48

    run(test)
