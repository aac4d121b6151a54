"""Speculation changes no token, no log-probability and no end; only how many tokens a step writes."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from compressor.runtime.kv import Cache
from compressor.runtime.model import Ids, Model, Read
from compressor.runtime.payoff import Payoff
from service.engine.adjustments import Adjustments
from service.engine.engine import Engine
from service.engine.generation import Generation, Prompt, Token
from service.engine.kv_budget import LONG_TEXTS, kv_budget_bytes
from service.engine.models import LoadedModel, load
from service.engine.sampling import Sampling
from service.engine.speculation import Speculation
from service.settings import Settings
from tests.conftest import TINY, tiny_model, write_artifact
from tests.proposing import Always, shortened
from tests.service.conftest import generation, int8_model
from tests.service.engine.test_batch import Cliff, Rounds, answer, random_prompt, run, running, value

MOST = 5
DRAFTS = ("copy", "near", "stranger", "short")


class Broken(Cliff):
    """A draft that cannot."""

    def read(self, tokens: Ids, cache: Cache, slots: Ids, counts: Ids, **asked: Any) -> Read:
        raise ZeroDivisionError


@pytest.fixture(scope="session")
def drafts(
    tiny: LoadedModel, artifacts: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, LoadedModel]:
    """The model itself, the same in int8, one that knows nothing of it, and one with half the context."""
    folder = tmp_path_factory.mktemp("drafts")
    short = shortened(tiny_model(seed=1), TINY.n_positions // 2)
    near, half = write_artifact(folder / "near", int8_model(seed=1)), write_artifact(folder / "short", short)
    return {"copy": tiny, "near": load(near), "stranger": load(artifacts[1]), "short": load(half)}


@asynccontextmanager
async def speculating(
    settings: Settings, model: LoadedModel, draft: LoadedModel, payoff: type[Payoff] = Always, **update: Any
) -> AsyncIterator[Engine]:
    """Run an engine whose `model` has a draft."""
    async with running(settings, **update) as engine:
        changed = settings.model_copy(update=update)
        pool = engine.make_room(kv_budget_bytes([model], changed, {model.name: draft}))
        engine.prepare(model, Speculation(draft, model, changed, engine.metrics, pool, payoff(MOST)))
        yield engine


def counted(engine: Engine, name: str) -> float:
    return value(engine, f"spec_decode_num_{name}_total")


async def answers(engine: Engine, make: Callable[[Engine], Generation], count: int = 1) -> list[list[Token]]:
    return await asyncio.gather(*(answer(engine, make(engine)) for _ in range(count)))


@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize("max_batch", [1, 2, 3])
def test_texts_are_the_same_with_a_draft(
    settings: Settings, tiny: LoadedModel, drafts: dict[str, LoadedModel], draft: str, max_batch: int
) -> None:
    random = Random(f"{draft} {max_batch}")
    prompts = [random_prompt(random, tiny) for _ in range(16)]
    asked: list[dict[str, Any]] = [
        {"scored": random.random() < 0.7, "top": random.choice([0, 0, 3]), "prompt_scored": random.random() < 0.2}
        for _ in prompts
    ]

    async def test() -> None:
        async with running(settings) as engine:
            plain = [
                await answer(engine, Generation(p, engine.metrics, **a)) for p, a in zip(prompts, asked, strict=True)
            ]
        async with speculating(settings, tiny, drafts[draft], max_batch=max_batch, prefill_chunk=16) as engine:
            jobs = [Generation(p, engine.metrics, **a) for p, a in zip(prompts, asked, strict=True)]
            delays = [random.random() / 5 for _ in jobs]
            assert await asyncio.gather(*map(answer, [engine] * len(jobs), jobs, delays)) == plain
            assert counted(engine, "drafts") > 0
            assert (counted(engine, "accepted_tokens") > 0.2 * counted(engine, "draft_tokens")) == (draft != "stranger")

    run(test)


@pytest.mark.parametrize(
    "how",
    [
        Sampling(),
        Sampling(adjustments=Adjustments(repetition_penalty=1.5)),
        Sampling(seed=3),
        Sampling(seed=4, temperature=0.4, top_p=0.8),
        Sampling(seed=5, top_k=40, adjustments=Adjustments(repetition_penalty=1.3)),
        Sampling(seed=6, typical_p=0.6),
        Sampling(seed=7, min_p=0.05),
        Sampling(adjustments=Adjustments(logit_bias=((5, 9.0), (6, 8.5)), frequency_penalty=0.3, presence_penalty=0.3)),
        Sampling(seed=8, adjustments=Adjustments(share_penalty=2, min_tokens=20, ends=(0, 1, 2, 3, 4))),
    ],
)
def test_its_own_copy_is_always_right(settings: Settings, tiny: LoadedModel, how: Sampling) -> None:
    """31 tokens: one behind the prompt, then five steps of five proposals and the model's own token."""

    async def test() -> None:
        async with speculating(settings, tiny, tiny) as engine:
            assert len(await answer(engine, generation(tiny, engine.metrics, new=31, how=how))) == 31
            assert [counted(engine, name) for name in ("drafts", "draft_tokens", "accepted_tokens")] == [5, 25, 25]
            assert value(engine, "decode_steps_total") == 5
            for position in range(MOST):
                labels = {"model_name": tiny.name, "position": str(position)}
                name = "ttgpt_spec_decode_num_accepted_tokens_per_pos_total"
                assert engine.metrics.registry.get_sample_value(name, labels) == 5

    run(test)


def test_nothing_is_proposed_beyond_the_last_token(settings: Settings, tiny: LoadedModel) -> None:
    async def test() -> None:
        for new, steps, proposed in ((1, 0, 0), (2, 1, 0), (3, 1, 1), (7, 1, 5), (8, 2, 5), (9, 2, 6)):
            async with speculating(settings, tiny, tiny) as engine:
                assert len(await answer(engine, generation(tiny, engine.metrics, new=new))) == new
                assert (value(engine, "decode_steps_total"), counted(engine, "draft_tokens")) == (steps, proposed)

    run(test)


def test_the_context_is_filled_to_its_end(settings: Settings, tiny: LoadedModel) -> None:
    async def test() -> None:
        async with speculating(settings, tiny, tiny) as engine:
            job = generation(tiny, engine.metrics, prompt=10, new=tiny.context - 10)
            assert len(await answer(engine, job)) == tiny.context - 10
            assert counted(engine, "accepted_tokens") == counted(engine, "draft_tokens") > 40

    run(test)


def test_a_stranger_is_hardly_ever_right(settings: Settings, tiny: LoadedModel, drafts: dict[str, LoadedModel]) -> None:
    async def test() -> None:
        async with speculating(settings, tiny, drafts["stranger"]) as engine:
            assert len(await answer(engine, generation(tiny, engine.metrics, new=40))) == 40
            proposed, accepted = counted(engine, "draft_tokens"), counted(engine, "accepted_tokens")
            assert accepted < 0.1 * proposed
            assert value(engine, "decode_steps_total") + accepted == 39  # every step writes a token of the model's own

    run(test)


def test_a_text_ends_among_its_proposals(settings: Settings, tiny: LoadedModel) -> None:
    """At each of the first places in turn: by the token that ends a text, and by a stop string."""

    async def test() -> None:
        async with running(settings) as engine:
            whole = await answer(engine, generation(tiny, engine.metrics, new=12))
        for at in range(1, 10):
            decoder = Renamed.of(tiny.decoder, whole[at].id)
            text = "".join(token.text for token in whole[: at + 1])
            ending = replace(generation_prompt(tiny), model=replace(tiny, decoder=decoder))
            stopping = replace(generation_prompt(tiny), stops=(text[-3:],))
            for prompt in (ending, stopping):
                async with running(settings) as engine:
                    plain = await answer(engine, Generation(prompt, engine.metrics))
                assert plain[-1].end is not None
                assert plain[-1].end.reason != "length"
                async with speculating(settings, prompt.model, tiny) as engine:
                    assert await answer(engine, Generation(prompt, engine.metrics)) == plain

    run(test)


class Renamed(Model):
    """A decoder for which another token ends texts."""

    @classmethod
    def of(cls, decoder: Model, eos_id: int) -> "Renamed":
        renamed = cls.__new__(cls)
        renamed.__dict__.update(decoder.__dict__)
        renamed.config = replace(decoder.config, eos_token_id=eos_id)
        return renamed


def generation_prompt(model: LoadedModel) -> Prompt:
    return Prompt(model=model, ids=(100, 101, 102), max_new_tokens=12, sampling=Sampling())


def test_three_texts_are_written_without_proposals(settings: Settings, tiny: LoadedModel) -> None:
    async def test() -> None:
        async with speculating(settings, tiny, tiny) as engine:
            rounds = Rounds()
            engine.submit(rounds)
            await rounds.begin()
            jobs = [generation(tiny, engine.metrics, new=n) for n in (40, 40, 10)]
            for job in jobs:
                engine.submit(job)
            await rounds.let(9)
            assert [job.generated for job in jobs] == [9, 9, 9]
            assert counted(engine, "drafts") == 0
            await rounds.let(2)  # the third ends; then the other two get 6 tokens each
            assert [job.generated for job in jobs] == [16, 16, 10]
            assert counted(engine, "drafts") == 2
            rounds.end()
            assert [len([token async for token in job.mailbox.events()]) for job in jobs] == [40, 40, 10]

    run(test)


def test_a_draft_reads_a_chunk_per_step_before_it_proposes(settings: Settings, tiny: LoadedModel) -> None:
    async def test() -> None:
        async with speculating(settings, tiny, tiny, prefill_chunk=16) as engine:
            rounds = Rounds()
            engine.submit(rounds)
            await rounds.begin()
            job = generation(tiny, engine.metrics, prompt=33, new=20)
            engine.submit(job)
            await rounds.let(3)  # in which it joins, and its prompt is read
            seen = [job.generated]
            for _ in range(3):
                await rounds.let()
                seen.append(job.generated)
            assert seen == [1, 2, 8, 14]
            rounds.end()
            assert len([token async for token in job.mailbox.events()]) == 20

    run(test)


@pytest.mark.parametrize("cliff", [True, False])
def test_a_failing_draft_fails_nobody(settings: Settings, tiny: LoadedModel, cliff: bool) -> None:
    draft = replace(tiny, decoder=(Cliff if cliff else Broken).of(tiny.decoder))

    async def test() -> None:
        async with running(settings) as engine:
            plain = await answer(engine, generation(tiny, engine.metrics, new=40))
        async with speculating(settings, tiny, draft) as engine:
            assert await answers(engine, lambda engine: generation(tiny, engine.metrics, new=40), 2) == [plain] * 2

    run(test)


def test_a_failure_among_proposals_is_none(settings: Settings, tiny: LoadedModel) -> None:
    """The model reads 19 tokens and no more: as many as without proposals, which would have it read further."""
    broken = replace(tiny, decoder=Cliff.of(tiny.decoder))

    async def test() -> None:
        async with running(settings) as engine:
            plain = await answer(engine, generation(broken, engine.metrics, new=17))
        async with speculating(settings, broken, tiny) as engine:
            long = generation(broken, engine.metrics, new=40)
            jobs = [generation(broken, engine.metrics, new=17), long]
            found = await asyncio.gather(*(answer(engine, job) for job in jobs), return_exceptions=True)
            assert found[0] == plain
            assert isinstance(found[1], Exception)
            assert long.generated == 18

    run(test)


def test_the_measured_payoff_changes_no_text(
    settings: Settings, tiny: LoadedModel, drafts: dict[str, LoadedModel]
) -> None:
    hows: Sequence[Sampling] = [Sampling(), *(Sampling(seed=seed) for seed in range(5))]

    async def test() -> None:
        async with running(settings) as engine:
            plain = [await answer(engine, generation(tiny, engine.metrics, new=60, how=how)) for how in hows]
        async with speculating(settings, tiny, drafts["near"], Payoff) as engine:
            assert [await answer(engine, generation(tiny, engine.metrics, new=60, how=how)) for how in hows] == plain
            together = [generation(tiny, engine.metrics, new=60, how=how) for how in hows]
            assert await asyncio.gather(*(answer(engine, job) for job in together)) == plain

    run(test)


def test_the_budget_counts_the_cache_of_the_draft(
    settings: Settings, tiny: LoadedModel, drafts: dict[str, LoadedModel]
) -> None:
    text = tiny.context * tiny.decoder.kv_bytes_per_token("fp16")
    short = {tiny.name: drafts["short"]}
    assert kv_budget_bytes([tiny], settings, short) == LONG_TEXTS * (text + text // 2)
    fitting = settings.model_copy(update={"kv_bytes": text + text // 2})
    assert kv_budget_bytes([tiny], fitting, short) == fitting.kv_bytes
    with pytest.raises(ValueError, match=r"one text of tiny-fp32 take .*TTGPT_DRAFT_MODEL"):
        kv_budget_bytes([tiny], fitting, {tiny.name: drafts["near"]})
