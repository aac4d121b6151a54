"""Bias, penalties and bans are those of transformers, or by vLLM's and TGI's definitions, and leave no trace."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import (
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from service.engine.adjustments import Adjustments, Kept, restore
from service.engine.generation import Generation, Prompt
from service.engine.models import LoadedModel
from service.engine.sampling import Sampling
from service.settings import Settings
from tests.service.conftest import logits_of
from tests.service.engine.test_batch import answer, running

SIZE = 60
Logits = NDArray[np.float32]
IDS = st.lists(st.integers(0, SIZE - 1), min_size=1, max_size=40)
BIASES = st.dictionaries(st.integers(0, SIZE - 1), st.floats(-100, 100, width=32), max_size=SIZE)
PENALTIES = st.floats(-2, 2, width=32)


def some_logits(seed: int) -> Logits:
    return (5 * np.random.default_rng(seed).normal(size=SIZE)).astype(np.float32)


def adjusted(logits: Logits, how: Adjustments, seen: Sequence[int] = (1,), prompt_tokens: int = 1) -> Logits:
    """Return adjusted logits, whose originals come back bit for bit."""
    changed, kept = logits.copy(), list[Kept]()
    how.apply(changed, seen, prompt_tokens, kept)
    found = changed.copy()
    restore(changed, kept)
    np.testing.assert_array_equal(changed, logits)
    return found


def processed(processor: Any, logits: Logits, seen: Sequence[int] = (1,)) -> Logits:
    found: Logits = processor(torch.tensor([list(seen)]), torch.from_numpy(logits.copy())[None])[0].numpy()
    return found


def by_definition(logits: Logits, how: Adjustments, seen: Sequence[int], prompt_tokens: int) -> list[float]:
    """Return what vLLM makes of logits, token by token; a share penalty is TGI's."""
    written, biases = Counter(seen[prompt_tokens:]), dict(how.logit_bias)
    found = []
    for token, logit in enumerate(map(float, logits)):
        value = logit + biases.get(token, 0)
        if token in seen:
            value = value / how.repetition_penalty if value > 0 else value * how.repetition_penalty
        value -= how.frequency_penalty * written[token] + how.presence_penalty * (written[token] > 0)
        value -= how.share_penalty * list(seen).count(token) / len(seen)
        banned = token in how.ends and len(seen) - prompt_tokens < how.min_tokens
        found.append(-np.inf if banned else value)
    return found


@given(st.integers(0, 2**32), BIASES.filter(bool))
def test_bias_is_that_of_transformers(seed: int, biases: dict[int, float]) -> None:
    logits = some_logits(seed)
    processor = SequenceBiasLogitsProcessor([[[token], value] for token, value in biases.items()])
    found = adjusted(logits, Adjustments(logit_bias=tuple(biases.items())))
    np.testing.assert_array_equal(found, processed(processor, logits))


@given(st.integers(0, 2**32), IDS, st.floats(0.125, 10, width=32))
def test_repetition_penalty_is_that_of_transformers(seed: int, seen: list[int], penalty: float) -> None:
    logits = some_logits(seed)
    found = adjusted(logits, Adjustments(repetition_penalty=penalty), seen)
    np.testing.assert_array_equal(found, processed(RepetitionPenaltyLogitsProcessor(penalty), logits, seen))


@given(st.integers(0, 2**32), IDS, st.integers(0, 40), st.integers(0, 40), st.sets(st.integers(0, SIZE - 1)))
def test_bans_are_those_of_transformers(seed: int, seen: list[int], prompt: int, least: int, ends: set[int]) -> None:
    logits, prompt = some_logits(seed), min(prompt, len(seen))
    how = Adjustments(min_tokens=least, ends=(0, *ends))
    processor = MinNewTokensLengthLogitsProcessor(prompt, least, [0, *ends])
    np.testing.assert_array_equal(adjusted(logits, how, seen, prompt), processed(processor, logits, seen))


@given(
    st.integers(0, 2**32),
    IDS,
    st.integers(0, 40),
    st.builds(
        Adjustments,
        logit_bias=BIASES.map(lambda biases: tuple(biases.items())),
        repetition_penalty=st.just(1.0) | st.floats(0.5, 2, width=32),
        frequency_penalty=PENALTIES,
        presence_penalty=PENALTIES,
        share_penalty=st.just(0.0) | PENALTIES,
        min_tokens=st.integers(0, 20),
        ends=st.just((3, 4, 5)),
    ),
)
def test_all_together_are_applied_in_the_order_of_vllm(
    seed: int, seen: list[int], prompt: int, how: Adjustments
) -> None:
    logits, prompt = some_logits(seed), min(prompt, len(seen))
    found = adjusted(logits, how, seen, prompt)
    np.testing.assert_allclose(found, by_definition(logits, how, seen, prompt), rtol=1e-5, atol=1e-4)
    concerned = {*seen, *how.ends, *dict(how.logit_bias)}
    others = [token for token in range(SIZE) if token not in concerned]
    np.testing.assert_array_equal(found[others], logits[others])


def test_nothing_is_done_by_default() -> None:
    assert not Adjustments().needed
    assert not Adjustments(logit_bias=(), repetition_penalty=1, frequency_penalty=0, min_tokens=0).needed


def test_logits_are_restored_where_an_adjustment_fails() -> None:
    logits, kept = some_logits(0), list[Kept]()
    with pytest.raises(IndexError):
        Adjustments(repetition_penalty=2, logit_bias=((3, 1.0),)).apply(logits, [SIZE], 1, kept)
    restore(logits, kept)
    np.testing.assert_array_equal(logits, some_logits(0))


HOWS = {
    "bias": Adjustments(logit_bias=tuple((i, (i % 7) - 3.0) for i in range(300))),
    "ban": Adjustments(logit_bias=((0, -100.0), (5, 100.0))),
    "frequency": Adjustments(frequency_penalty=0.4),
    "presence": Adjustments(presence_penalty=2.0),
    "reward": Adjustments(frequency_penalty=-2.0, presence_penalty=-1.0),
    "share": Adjustments(share_penalty=2.0),
    "all": Adjustments(
        logit_bias=((7, 3.0), (8, -1.0)),
        repetition_penalty=1.2,
        frequency_penalty=0.5,
        presence_penalty=0.5,
        min_tokens=9,
        ends=(0, 4, 5),
    ),
}


@pytest.mark.parametrize("name", HOWS)
def test_texts_are_written_token_by_token_by_definition(settings: Settings, tiny: LoadedModel, name: str) -> None:
    """Greedy, in the engine, beside the model's logits adjusted by definition."""
    prompt, how, new = (100, 101, 102, 101), HOWS[name], 20
    ids = list(prompt)
    for _ in range(new):
        logits = logits_of(tiny.decoder, ids, settings.kv_dtype)[-1]
        ids.append(int(np.argmax(by_definition(logits, how, ids, len(prompt)))))

    async def test() -> list[int]:
        async with running(settings) as engine:
            asked = Prompt(
                model=tiny, ids=prompt, max_new_tokens=new, sampling=Sampling(adjustments=how), ignore_eos=True
            )
            return [token.id for token in await answer(engine, Generation(asked, engine.metrics))]

    assert asyncio.run(test()) == ids[len(prompt) :]
