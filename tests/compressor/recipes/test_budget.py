"""Spending bytes: what is bought fits, is never worse for more, and is the best there is."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.recipes import budget
from compressor.recipes.pieces import Choice, Piece

points = st.lists(st.tuples(st.integers(1, 60), st.integers(0, 60)), min_size=1, max_size=6)
matrices = st.lists(points, min_size=1, max_size=4)


def _choices(name: str, found: list[tuple[int, int]]) -> list[Choice]:
    piece = Piece(name, slice(0, 1), True)
    return [Choice(piece, "quantize", {"codec": f"{i}"}, size, float(kl)) for i, (size, kl) in enumerate(found)]


def _measured(found: list[list[tuple[int, int]]]) -> dict[str, list[Choice]]:
    return {f"m{i}": _choices(f"m{i}", choices) for i, choices in enumerate(found)}


@given(points)
def test_the_frontier_is_convex_and_nothing_lies_below_it(found: list[tuple[int, int]]) -> None:
    hull = budget.frontier(_choices("m", found))
    sizes, losses = [c.size_bytes for c in hull], [c.kl for c in hull]
    assert sizes == sorted(set(sizes))
    assert losses == sorted(set(losses), reverse=True)
    slopes = [(b.kl - a.kl) / (b.size_bytes - a.size_bytes) for a, b in itertools.pairwise(hull)]
    assert slopes == sorted(slopes)
    for size, kl in found:
        below = [c for c in hull if c.size_bytes <= size]
        assert below
        assert hull[-1].kl <= kl or below[-1].kl <= kl or _interpolated(hull, size) <= kl + 1e-9


def _interpolated(hull: list[Choice], size: int) -> float:
    for a, b in itertools.pairwise(hull):
        if a.size_bytes <= size <= b.size_bytes:
            return a.kl + (b.kl - a.kl) * (size - a.size_bytes) / (b.size_bytes - a.size_bytes)
    return hull[-1].kl


@given(matrices, st.integers(0, 200))
def test_what_is_bought_fits_or_is_refused_with_what_it_needs(found: list[list[tuple[int, int]]], size: int) -> None:
    measured = _measured(found)
    least = sum(min(c.size_bytes for c in choices) for choices in measured.values())
    if size < least:
        with pytest.raises(ValueError, match=f"budget must be at least {least} bytes"):
            budget.spend(measured, size)
        return
    chosen = budget.spend(measured, size)
    assert chosen.keys() == measured.keys()
    assert sum(c.size_bytes for c in chosen.values()) <= size


@given(matrices)
def test_greedy_is_optimal_at_the_sizes_it_uses_up(found: list[list[tuple[int, int]]]) -> None:
    measured = _measured(found)
    hulls = [budget.frontier(choices) for choices in measured.values()]
    for size in {sum(c.size_bytes for c in combination) for combination in itertools.product(*hulls)}:
        chosen = budget.spend(measured, size)
        bought, loss = sum(c.size_bytes for c in chosen.values()), sum(c.kl for c in chosen.values())
        for other in itertools.product(*hulls):
            if sum(c.size_bytes for c in other) <= bought:
                # No combination within the bytes that were spent is better than the last step that did not fit.
                assert loss <= sum(c.kl for c in other) + max(c.kl for h in hulls for c in h)


@given(matrices, st.integers(0, 150))
def test_the_smallest_model_within_a_loss_keeps_it(found: list[list[tuple[int, int]]], loss: int) -> None:
    measured = _measured(found)
    best = sum(budget.frontier(choices)[-1].kl for choices in measured.values())
    chosen = budget.smallest_within(measured, loss)
    assert sum(c.kl for c in chosen.values()) <= max(loss, best)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 2.0, "target": "none"}, "target must be one of embedding, "),
        ({"ratio": 2.0, "target": "wte"}, "target must be one of embedding, "),
        ({}, "exactly one of"),
        ({"ratio": 2.0, "size_bytes": 5}, "exactly one of"),
        ({"ratio": 0.5}, "ratio must be between 1.0 and 1000.0, not 0.5"),
        ({"size_bytes": 0}, "budget must be between 1"),
        ({"max_perplexity_ratio": 0.9}, "max_perplexity_ratio must be between 1.0"),
    ],
)
def test_illegal_budgets_name_the_field(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        budget.Config(**options)
