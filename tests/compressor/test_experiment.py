"""Experiments: results go out of date with what they depend on, and the frontier holds nothing that is beaten."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor import budget
from compressor.compare import points
from compressor.compress import Recipe
from compressor.experiment import Experiment, Workbench, experiments
from compressor.plot import Point, draw, frontier

PLAIN = Experiment(name="a", label="a", plan=Recipe(method="svd", options={"rank": 8}))
sizes = st.lists(st.tuples(st.floats(0.1, 100), st.floats(1, 1000)), min_size=1, max_size=20)


@pytest.mark.parametrize(
    "change",
    [
        {"plan": Recipe(method="svd", options={"rank": 9})},
        {"plan": Recipe(method="svd", options={"rank": 8}, rest="int8")},
        {"plan": budget.Config(ratio=8.0)},
        {"heal_tokens": 4096},
        {"books": True},
        {"untied": True},
    ],
)
def test_whatever_changes_a_result_changes_its_inputs(change: dict[str, object]) -> None:
    changed = replace(PLAIN, **change)  # type: ignore[arg-type]
    assert changed.inputs() != PLAIN.inputs()
    assert json.loads(json.dumps(changed.inputs())) == changed.inputs()  # as it comes back from a result


def test_a_label_changes_nothing() -> None:
    assert replace(PLAIN, label="b", name="b").inputs() == PLAIN.inputs()


def test_experiments_on_books_ask_for_them() -> None:
    on_books = next(experiment for experiment in experiments() if experiment.books)
    with pytest.raises(ValueError, match=r"books: give the folder with train.txt.xz and valid.txt.xz"):
        Workbench().run(on_books)


@given(sizes)
def test_the_frontier_is_what_nothing_beats(found: list[tuple[float, float]]) -> None:
    best = frontier(found)
    assert set(best) <= set(found)
    for size, ratio in found:
        assert any(s <= size and r <= ratio for s, r in best)
    for point in best:
        assert not any(s <= point[0] and r <= point[1] and (s, r) != point for s, r in best)


def test_the_same_points_give_the_same_picture(tmp_path: Path) -> None:
    some = [Point("whole model", "svd", 2.0, 1.5), Point("embedding", "svd, healed", 1.0, 3.0)]
    for name in ("a.svg", "b.svg"):
        draw(some, tmp_path / name, "described")
    picture = (tmp_path / "a.svg").read_text()
    assert picture == (tmp_path / "b.svg").read_text()
    assert "described" in picture
    assert all(text in picture for text in ("svd, healed", "frontier", "whole model", "embedding"))


def test_every_result_is_a_point_that_says_whether_it_is_healed() -> None:
    healed = [point for point in points() if point.curve.endswith(", healed")]
    assert len(points()) == len(experiments())
    assert len(healed) == sum(experiment.heal_tokens > 0 for experiment in experiments())
