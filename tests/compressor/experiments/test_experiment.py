"""Experiments: results go out of date with what they depend on, and the frontier holds nothing that is beaten."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compressor.artifact.manifest import Source
from compressor.experiments.compression import Compression, compressions
from compressor.experiments.runner import experiments
from compressor.experiments.tables import points
from compressor.experiments.workbench import Workbench
from compressor.huggingface import Checkpoint
from compressor.plot import Point, draw, frontier
from compressor.progress import silent
from compressor.recipes.plans import Budget, Recipe
from tests.conftest import TOKENIZER, tiny_model

T = TypeVar("T")
PLAIN = Compression(name="a", label="a", plan=Recipe(method="svd", options={"rank": 8}))
sizes = st.lists(st.tuples(st.floats(0.1, 100), st.floats(1, 1000)), min_size=1, max_size=20)


@pytest.mark.parametrize(
    "change",
    [
        {"plan": Recipe(method="svd", options={"rank": 9})},
        {"plan": Recipe(method="svd", options={"rank": 8}, rest="int8")},
        {"plan": Budget(ratio=8.0)},
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
    for kind in ("compression", "pretraining"):
        on_books = next(e for e in experiments() if e.kind == kind and e.books)
        with pytest.raises(ValueError, match=r"books: give the folder with train.txt.xz and valid.txt.xz"):
            on_books.run(Workbench(anew=True))


@pytest.mark.parametrize("anew", [True, False])
def test_a_rerun_heals_anew_and_an_interrupted_run_is_resumed(
    anew: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    steps: list[int] = []

    class StoppedError(Exception):
        pass

    def stopped_after_healing(items: Iterable[T], *, label: str, total: int) -> Iterable[T]:
        nonlocal steps
        for item in items:
            if label == "Evaluating":
                raise StoppedError
            steps += [1] * (label == "Healing")
            yield item

    tiny = Checkpoint(tiny_model(), TOKENIZER, Source(id="tiny", sha256="0" * 64))
    experiment = replace(PLAIN, heal_tokens=3 * 8 * 64)
    bench = Workbench(progress=stopped_after_healing, checkpoint=tiny, anew=anew)
    bench.sampled_to_heal = torch.randint(16384, (30, 64), generator=torch.Generator().manual_seed(0))
    for healed in (3, 3 if anew else 0):
        steps.clear()
        with pytest.raises(StoppedError):
            experiment.run(bench)
        assert len(steps) == healed
    bench.progress = silent
    experiment.run(bench)
    assert not list(tmp_path.glob("build/healing/*"))  # a finished run leaves nothing to resume


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
    assert len(points()) == len(compressions())
    assert len(healed) == sum(experiment.heal_tokens > 0 for experiment in compressions())
