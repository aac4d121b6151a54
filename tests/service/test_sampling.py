"""Laws of sampling."""

from collections.abc import Callable

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from service import sampling
from service.sampling import Sampling

LOGITS = st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=30).map(torch.tensor)


@given(LOGITS, st.integers(1, 40))
def test_top_k_keeps_the_k_best(logits: Tensor, k: int) -> None:
    kept = sampling.keep_top_k(logits, k)
    inside = kept.isfinite()
    assert int(inside.sum()) == min(k, len(logits))
    assert torch.equal(kept[inside], logits[inside])
    assert inside.all() or logits[inside].min() >= logits[~inside].max()


@given(LOGITS, st.floats(0.01, 0.99))
def test_top_p_keeps_the_fewest_that_reach_p(logits: Tensor, p: float) -> None:
    inside = sampling.keep_top_p(logits, p).isfinite()
    probabilities = logits.softmax(-1)
    kept = probabilities[inside]
    assert kept.numel()
    assert float(kept.sum()) >= p - 1e-5
    assert kept.numel() == 1 or float(kept.sum() - kept.min()) < p + 1e-5
    assert inside.all() or float(kept.min()) >= float(probabilities[~inside].max())


@given(LOGITS, st.sampled_from([1e-300, 1e-30, 1e-9]), st.integers(0, 2**63 - 1))
def test_a_cold_draw_is_the_best_token(logits: Tensor, temperature: float, seed: int) -> None:
    how = Sampling(seed=seed, temperature=temperature)
    chosen = sampling.choose(logits, torch.tensor([0]), how, torch.Generator().manual_seed(seed))
    assert logits.max() - logits[chosen] <= 100 * max(temperature, sampling.COLDEST)


@given(LOGITS, st.floats(0.1, 10))
def test_temperature_keeps_the_odds(logits: Tensor, temperature: float) -> None:
    expected = (logits / temperature).softmax(-1)
    torch.testing.assert_close(sampling.apply_temperature(logits, temperature).softmax(-1), expected)


@given(LOGITS, st.integers(0, 2**63 - 1), st.floats(0.1, 5), st.integers(1, 10), st.floats(0.1, 1))
def test_the_same_seed_draws_the_same(logits: Tensor, seed: int, temperature: float, k: int, p: float) -> None:
    how = Sampling(seed=seed, temperature=temperature, top_k=k, top_p=p)
    draws = []
    for _ in range(2):
        generator = torch.Generator().manual_seed(seed)
        draws.append([int(sampling.choose(logits, torch.tensor([0]), how, generator)) for _ in range(5)])
    assert draws[0] == draws[1]
    assert all(sampling.keep_top_k(logits, k)[token].isfinite() for token in draws[0])


@given(LOGITS, st.floats(1, 10), st.data())
def test_penalty_only_lowers_what_was_seen(logits: Tensor, penalty: float, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, len(logits) - 1), min_size=1))
    penalised = sampling.penalise_repetition(logits, torch.tensor(ids), penalty)
    seen = torch.zeros(len(logits), dtype=torch.bool)
    seen[ids] = True
    assert torch.equal(penalised[~seen], logits[~seen])
    assert (penalised[seen] <= logits[seen]).all()


def test_rows_are_independent() -> None:
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    seen = torch.arange(12).reshape(4, 3)
    laws: list[Callable[[Tensor, Tensor], Tensor]] = [
        lambda scores, _: sampling.keep_top_k(scores, 5),
        lambda scores, _: sampling.keep_top_p(scores, 0.5),
        lambda scores, _: sampling.apply_temperature(scores, 0.5),
        lambda scores, ids: sampling.penalise_repetition(scores, ids, 2),
    ]
    for law in laws:
        assert torch.equal(law(logits, seen), torch.stack([law(logits[i], seen[i]) for i in range(4)]))


def test_log_probability_is_of_the_chosen_token() -> None:
    logits = torch.tensor([[0.0, 1.0], [2.0, 2.0]])
    found = sampling.log_probability(logits, torch.tensor([1, 0])).exp()
    torch.testing.assert_close(found, torch.tensor([1 / (1 + torch.e**-1), 0.5]))
