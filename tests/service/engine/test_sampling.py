"""Laws of sampling: whatever the parameters, each token is drawn as often as its share of what they leave."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from compressor.runtime._decoder import INSTRUCTIONS, draw
from service.engine import sampling
from service.engine.adjustments import Adjustments, penalised
from service.engine.sampling import Choice, Sampling
from tests.compressor.runtime.replay import Draws

LOGITS = st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=30).map(
    lambda scores: np.array(scores, np.float32)
)
GRID = 512  # evenly spaced draws


def softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = torch.from_numpy(logits).double().softmax(-1).numpy()
    return found


def normal(seed: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def shares(logits: NDArray[np.float32], how: Sampling) -> NDArray[np.float64]:
    """Return how often each token [V] is taken by evenly spaced draws."""
    choices = [Choice(how, (i + 0.5) / GRID) for i in range(GRID)]
    chosen = sampling.choose(np.broadcast_to(logits, (GRID, len(logits))), choices)
    return np.bincount(chosen, minlength=len(logits)) / GRID


def assert_drawn_from(logits: NDArray[np.float32], how: Sampling, expected: NDArray[np.floating]) -> None:
    """A stretch of [0, 1) holds as many evenly spaced draws as it is long, give or take one."""
    found = shares(logits, how)
    np.testing.assert_allclose(found, expected, atol=1.01 / GRID + 1e-5, rtol=0)
    assert not found[expected == 0].any()


def assert_drawn_from_one_of(
    logits: NDArray[np.float32], how: Sampling, limit: float, left_by: Callable[[float], torch.Tensor]
) -> None:
    """What is left may differ where a sum reaches the limit but for rounding."""
    found = shares(logits, how)
    near = [left_by(limit * (1 + change))[0].softmax(-1).numpy() for change in (0, -1e-5, 1e-5)]
    assert min(abs(found - expected).max() for expected in near) <= 1.01 / GRID + 1e-5


@given(LOGITS, st.floats(0.1, 10))
def test_temperature_keeps_the_odds(logits: NDArray[np.float32], temperature: float) -> None:
    expected = softmax(logits.astype(np.float64) / temperature)
    assert_drawn_from(logits, Sampling(seed=0, temperature=temperature), expected)


@given(st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=30, unique=True), st.integers(1, 40))
def test_top_k_leaves_the_k_best(scores: list[float], k: int) -> None:
    logits = np.array(scores)
    worst = np.sort(logits)[-k:][0]
    expected = softmax(np.where(logits < worst, -math.inf, logits))
    assert_drawn_from(logits.astype(np.float32), Sampling(seed=0, top_k=k), expected)


@given(
    st.integers(0, 2**32), st.sampled_from([1, 7, 600, 50_257]), st.integers(1, 700), st.sampled_from([2, 40, 10**6])
)
def test_the_best_are_the_best_and_of_equal_ones_the_first(seed: int, size: int, count: int, different: int) -> None:
    logits = np.random.default_rng(seed).integers(0, different, size).astype(np.float32)
    count = min(count, size)
    found = sampling.best(logits, count)
    assert found.tolist() == np.lexsort((np.arange(size), -logits))[:count].tolist()


def test_of_equal_tokens_the_first_are_in_the_top_k() -> None:
    logits = np.zeros(600, np.float32)
    logits[[5, 300, 301, 599]] = 1
    assert sampling.best(logits, 2).tolist() == [5, 300]
    assert sampling.choose(logits[np.newaxis], [Choice(Sampling())]) == [5]
    how = Sampling(seed=0, top_k=3)
    chosen = sampling.choose(np.tile(logits, (3, 1)), [Choice(how, u) for u in (0.0, 0.5, 0.9)])
    assert chosen == [5, 300, 301]


@given(
    st.integers(0, 2**32),
    st.floats(0.01, 0.999),
    st.sampled_from([0.0, 0.1, 1.0, 5.0]),
    st.sampled_from([2, 300, 5000]),
    st.sampled_from([None, 2, 200]),
)
def test_top_p_leaves_what_transformers_leaves(
    seed: int, p: float, spread: float, size: int, top_k: int | None
) -> None:
    """Sharp or flat: where the nucleus is looked for makes no difference to what it is."""
    random = np.random.default_rng(seed)
    logits = (np.float32(spread) * random.normal(size=size) + 1e-3 * random.normal(size=size)).astype(np.float32)
    scores = torch.from_numpy(logits).double().unsqueeze(0)
    if top_k is not None:
        scores = TopKLogitsWarper(top_k)(None, scores)
    how = Sampling(seed=0, top_k=top_k, top_p=p)
    assert_drawn_from_one_of(logits, how, p, lambda limit: TopPLogitsWarper(limit)(None, scores))


def test_of_equal_tokens_the_first_are_in_the_nucleus() -> None:
    assert shares(np.zeros(8, np.float32), Sampling(seed=0, top_p=0.3)).nonzero()[0].tolist() == [0, 1, 2]
    assert shares(np.array([3, 5, 5], np.float32), Sampling(seed=0, top_p=0.1)).tolist() == [0, 1, 0]


@given(
    st.integers(0, 2**32),
    st.sampled_from([0.01, 0.2, 0.5, 0.9, 0.95, 0.999]),
    st.sampled_from([0.5, 1.0, 3.0]),
    st.sampled_from([None, 1, 10, 400]),
    st.sampled_from([1.0, 0.95, 0.4]),
)
def test_typical_p_leaves_what_transformers_leaves(
    seed: int, typical_p: float, temperature: float, top_k: int | None, top_p: float
) -> None:
    """After temperature, top-k and top-p, in this order; TGI's is transformers'."""
    random = np.random.default_rng(seed)
    logits = torch.from_numpy(random.choice([0.3, 1, 5]) * random.normal(size=300)).float().unsqueeze(0)
    scores = TemperatureLogitsWarper(temperature)(None, logits.double())
    if top_k is not None:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(None, scores)
    how = Sampling(seed=0, temperature=temperature, top_k=top_k, top_p=top_p, typical_p=typical_p)
    assert_drawn_from_one_of(logits[0].numpy(), how, typical_p, lambda limit: TypicalLogitsWarper(limit)(None, scores))


MASSES = [(mass, spread) for mass in (0.001, 0.3, 0.95, 0.9999) for spread in (0.1, 1.0, 5.0, 20.0)]


@given(st.integers(0, 2**32), st.sampled_from(MASSES[1:]))
def test_typical_tokens_of_a_whole_vocabulary(seed: int, odds: tuple[float, float]) -> None:
    """But the few most typical ones of nearly equal tokens, which differ by less than fp32 tells."""
    mass, spread = odds
    logits = (spread * np.random.default_rng(seed).normal(size=5000)).astype(np.float32)
    scores = torch.from_numpy(logits).double().unsqueeze(0)
    how = Sampling(seed=0, typical_p=mass)
    assert_drawn_from_one_of(logits, how, mass, lambda limit: TypicalLogitsWarper(limit)(None, scores))


def test_as_typical_as_the_last_one_is_typical() -> None:
    for odds, mass, expected in (([0.125] * 8, 0.2, [0.125] * 8), ([0.9, 0.1], 0.5, [1, 0]), ([1.0], 0.99, [1])):
        assert_drawn_from(np.log(np.array(odds, np.float32)), Sampling(seed=0, typical_p=mass), np.array(expected))


@given(
    st.integers(0, 2**32),
    st.sampled_from([0.001, 0.02, 0.1, 0.4, 0.9]),
    st.sampled_from([0.5, 1.0, 3.0]),
    st.sampled_from([None, 1, 10, 400]),
    st.sampled_from([1.0, 0.95, 0.4]),
    st.sampled_from([1.0, 0.6]),
)
def test_min_p_leaves_what_transformers_leaves(
    seed: int, min_p: float, temperature: float, top_k: int | None, top_p: float, typical_p: float
) -> None:
    """After temperature and before the others, as in vLLM. Beside top-k alone the order makes no difference."""
    random = np.random.default_rng(seed)
    logits = torch.from_numpy(random.choice([0.3, 1, 5]) * random.normal(size=300)).float().unsqueeze(0)
    how = Sampling(seed=0, temperature=temperature, top_k=top_k, top_p=top_p, typical_p=typical_p, min_p=min_p)

    def left_by(limit: float, *, last: bool = False) -> torch.Tensor:
        scores = TemperatureLogitsWarper(temperature)(None, logits.double())
        likely: Any = MinPLogitsWarper(limit)
        scores = scores if last else likely(None, scores)
        scores = scores if top_k is None else TopKLogitsWarper(top_k)(None, scores)
        scores = TopPLogitsWarper(top_p)(None, scores) if top_p < 1 else scores
        scores = TypicalLogitsWarper(typical_p)(None, scores) if typical_p < 1 else scores
        found: torch.Tensor = likely(None, scores) if last else scores
        return found

    assert_drawn_from_one_of(logits[0].numpy(), how, min_p, left_by)
    if top_p == typical_p == 1:
        assert_drawn_from_one_of(logits[0].numpy(), how, min_p, lambda limit: left_by(limit, last=True))


@given(LOGITS, st.floats(0, 1, exclude_max=True))
@example(np.array([17, 0], np.float32), np.nextafter(1, 0))  # beyond what sums in fp32 tell apart
def test_the_whole_share_of_the_best_leaves_the_best(logits: NDArray[np.float32], uniform: float) -> None:
    chosen = sampling.choose(logits[np.newaxis], [Choice(Sampling(seed=0, min_p=1.0), uniform)])[0]
    assert logits.max() - logits[chosen] <= 1e-6
    assert sampling.choose(logits[np.newaxis], [Choice(Sampling(seed=0, min_p=1e-300), uniform)]) == sampling.choose(
        logits[np.newaxis], [Choice(Sampling(seed=0), uniform)]
    )


def test_large_vocabularies_are_drawn_from_as_small_ones_are() -> None:
    logits = normal(0, 3 * 256 + 7)
    odds = softmax(logits)
    uniforms = [(i + 0.5) / 3_000 for i in range(3_000)]
    chosen = [sampling.choose(logits[np.newaxis], [Choice(Sampling(seed=0), u)])[0] for u in uniforms]
    expected = np.searchsorted(odds.cumsum(), uniforms, side="right")
    assert (np.array(chosen) != expected).sum() < 10  # draws within rounding of a border


@given(
    LOGITS,
    st.floats(0, 1, exclude_max=True),
    st.sampled_from([1e-300, 1e-30, 1e-9]),
    st.sampled_from([None, 1, 5]),
    st.sampled_from([1.0, 0.99]),
)
def test_a_cold_draw_is_the_best_token(
    logits: NDArray[np.float32], uniform: float, temperature: float, k: int | None, p: float
) -> None:
    how = Sampling(seed=1, temperature=temperature, top_k=k, typical_p=p)
    chosen = sampling.choose(logits[np.newaxis], [Choice(how, uniform)])[0]
    assert logits.max() - logits[chosen] <= 100 * max(temperature, sampling.COLDEST)


@given(LOGITS, st.floats(1, 10), st.data())
def test_penalty_only_lowers_what_was_seen(logits: NDArray[np.float32], penalty: float, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, len(logits) - 1), min_size=1))
    lower = logits.copy()
    lower[ids] = penalised(logits[ids], penalty)
    seen = np.isin(np.arange(len(logits)), ids)
    assert np.array_equal(lower[~seen], logits[~seen])
    assert (lower[seen] <= logits[seen]).all()
    greedy = Sampling(adjustments=Adjustments(repetition_penalty=penalty))
    before = logits.copy()
    assert sampling.choose(logits[np.newaxis], [Choice(greedy, seen=ids)]) == [int(lower.argmax())]
    assert np.array_equal(logits, before)


@given(LOGITS, st.floats(0, exclude_min=True, allow_infinity=False), st.sampled_from([None, 3]), st.data())
def test_every_legal_penalty_leaves_something_to_draw_from(
    logits: NDArray[np.float32], penalty: float, k: int | None, data: st.DataObject
) -> None:
    ids = data.draw(st.lists(st.integers(0, len(logits) - 1), min_size=1))
    p = data.draw(st.sampled_from([1.0, 5e-324, math.nextafter(1, 0)]))
    how = Sampling(seed=0, top_p=5e-324, top_k=k, typical_p=p, adjustments=Adjustments(repetition_penalty=penalty))
    assert np.isfinite(penalised(logits, penalty)).all()
    assert 0 <= sampling.choose(logits[np.newaxis], [Choice(how, 0.5, ids)])[0] < len(logits)


ADJUSTMENTS = st.builds(
    Adjustments,
    logit_bias=st.dictionaries(st.integers(0, 599), st.floats(-100, 100), max_size=5).map(lambda d: tuple(d.items())),
    repetition_penalty=st.sampled_from([1.0, 1.5]),
    frequency_penalty=st.sampled_from([0.0, 2.0]),
    presence_penalty=st.sampled_from([0.0, -2.0]),
    share_penalty=st.sampled_from([0.0, 1.0]),
    min_tokens=st.integers(0, 4),
    ends=st.just((0, 7)),
)
SAMPLINGS = st.builds(
    Sampling,
    seed=st.sampled_from([None, 0]),
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    top_k=st.sampled_from([None, None, 1, 5, 5, 1000]),
    top_p=st.sampled_from([1.0, 1.0, 0.5, 0.9]),
    typical_p=st.sampled_from([1.0, 1.0, 0.2, 0.95]),
    min_p=st.sampled_from([0.0, 0.0, 0.01, 0.3, 1.0]),
    adjustments=st.just(Adjustments()) | ADJUSTMENTS,
)
CHOICES = st.builds(
    Choice,
    SAMPLINGS,
    st.floats(0, 1, exclude_max=True),
    st.lists(st.integers(0, 599), min_size=1, max_size=4),
    st.integers(0, 2),
)


@given(st.lists(CHOICES, min_size=1, max_size=8), st.integers(0, 2**32))
def test_rows_are_independent(choices: list[Choice], seed: int) -> None:
    logits = 3 * normal(seed, len(choices), 600)
    before = logits.copy()
    together = sampling.choose(logits, choices)
    assert np.array_equal(logits, before)
    assert together == [sampling.choose(logits[i : i + 1], [choice])[0] for i, choice in enumerate(choices)]
    found = sampling.likelihoods(logits, together, 3)
    for i, token in enumerate(together):
        alone = sampling.likelihoods(logits[i : i + 1], [token], 3)
        assert all(np.array_equal(part[0], whole[i]) for part, whole in zip(alone, found, strict=True))


def test_log_probability_is_of_the_chosen_token() -> None:
    logits = np.array([[0.0, 1.0], [2.0, 2.0]], np.float32)
    found, *_ = sampling.likelihoods(logits, [1, 0], 0)
    np.testing.assert_allclose(np.exp(found), [1 / (1 + math.e**-1), 0.5], rtol=1.3e-6, atol=1e-5)


@given(st.integers(0, 2**32), st.sampled_from([0.1, 1.0, 30.0]), st.integers(0, 5))
def test_likelihoods_are_those_of_torch(seed: int, spread: float, count: int) -> None:
    logits = np.float32(spread) * normal(seed, 4, 5000)
    expected = torch.from_numpy(logits).log_softmax(-1)
    found, best_ids, best = sampling.likelihoods(logits, [0, 1, 2, 4999], count)
    top = expected.topk(count)
    assert np.array_equal(best_ids, top.indices)
    for ours, theirs in ((found, expected[range(4), [0, 1, 2, 4999]]), (best, top.values)):
        torch.testing.assert_close(torch.from_numpy(ours), theirs)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("temperature", -1.0),
        ("top_k", -1),
        ("top_p", 0.0),
        ("typical_p", math.nan),
        ("min_p", 1.01),
        ("min_p", math.nan),
        ("uniform", 1.0),
    ],
)
def test_illegal_draws(argument: str, value: float) -> None:
    legal = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "typical_p": 1.0, "min_p": 0.0, "uniform": 0.5}
    legal |= {argument: value}
    kinds = {"temperature": np.float32, "top_k": np.int64}
    given = {name: np.array([number], kinds.get(name, np.float64)) for name, number in legal.items()}
    with pytest.raises(ValueError, match="temperature and top_k must be at least 0, top_p and typical_p above 0"):
        draw(normal(0, 1, 5), np.empty(1, np.int64), **given, threads=1, instructions=None)


def test_every_set_of_instructions_draws_the_same() -> None:
    for logits in (normal(1, 24, 777), 4 * normal(2, 24, 50_257)):
        first, *others = [list(Draws(logits).answers(2, name)) for name in INSTRUCTIONS]
        for other in others:
            np.testing.assert_array_equal(first, other)
