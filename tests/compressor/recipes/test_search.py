"""The search: estimates are near what is measured, what was chosen was measured, and nothing is found twice."""

import itertools
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from torch import Tensor

from compressor.artifact.gpt2_config import GPT2Config
from compressor.formats import Dense
from compressor.gpt2 import GPT2
from compressor.methods import quantize
from compressor.methods.base import is_target
from compressor.recipes import budget, calibrate, divergence, sensitivity
from compressor.recipes.divergence import Reference
from compressor.recipes.heal import distillation_loss
from compressor.recipes.journal import Journal
from compressor.recipes.pieces import Choice, Piece, candidates
from compressor.recipes.search import Found, Search, corrected, identity, rivals
from tests.conftest import tiny_model

T = TypeVar("T")
SHAPE = GPT2Config(vocab_size=60, n_positions=16, n_embd=16, n_layer=2, n_head=2, n_inner=32, eos_token_id=0)
IDS = torch.randint(60, (64, 16), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def dense() -> GPT2:
    return tiny_model(SHAPE).expanded()


def _untied(dense: GPT2) -> GPT2:
    random = torch.Generator().manual_seed(1)
    other = quantize.compress(torch.randn(60, 16, generator=random), quantize.Config(codec="fp32"))
    return dense.with_matrices({"lm_head": other})


def _of_ratio(search: Search, ratio: float) -> Found:
    config = budget.Config(ratio=ratio)
    return search.found(lambda choices: budget.choose(choices, config, search.dense)[0])


@torch.inference_mode()
def test_what_is_measured_is_the_divergence_of_the_whole_vocabulary(
    dense: GPT2, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(divergence, "DRAWN_TOKENS", 20_000)
    ids = IDS[:8]
    for model in (dense, _untied(dense)):
        reference = Reference.of(model, ids)
        for name, form in model.matrices().items():
            other = model.with_matrices({name: quantize.compress(form.dense(), quantize.Config(codec="int3"))})
            logits = [m.logits(m(ids).flatten(0, 1)) for m in (other, model)]
            exact = float(distillation_loss(*logits)) / ids.numel()
            found = reference.kl({name: other.matrices()[name]})
            assert found == pytest.approx(exact, rel=0.05, abs=1e-6), name


@pytest.mark.parametrize("is_tied", [True, False])
def test_a_small_error_loses_what_is_estimated(dense: GPT2, is_tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divergence, "DRAWN_TOKENS", 2000)
    monkeypatch.setattr(divergence, "MEASURED_TOKENS", 1024)
    model = dense if is_tied else _untied(dense)
    known, reference = sensitivity.gradients(model, IDS), Reference.of(model, IDS)
    random = torch.Generator().manual_seed(0)
    for name, statistics in calibrate.collect(model, IDS).items():
        weight = model.matrices()[name].dense()
        error = 0.02 * weight.std() * torch.randn(weight.shape, generator=random)
        losses = known.losses(name, statistics, len(weight))
        estimate = sum(loss.of(error) for loss in losses)
        assert 0.4 < estimate / reference.kl({name: Dense.of(weight + error, "fp32")}) < 2.5, name


def test_rows_say_what_all_lose() -> None:
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(4096, 8, generator=random)
    rows = sensitivity.sampled_rows(4096)
    assert len(rows) == sensitivity.SAMPLED_ROWS
    error = weight * torch.randn(4096, 8, generator=random) / 9
    loss = sensitivity.Loss(torch.rand(4096, generator=random), torch.eye(8))
    assert loss.sampled(weight, rows).of(error[rows]) == pytest.approx(loss.of(error), rel=0.15)


@pytest.mark.parametrize("count", [1, 16, 40, 255, 256, 257, 700, 25129])
def test_samples_are_whole_groups_of_rows_in_order(count: int) -> None:
    rows = sensitivity.sampled_rows(count).tolist()
    assert rows == sorted(set(rows))
    assert 0 <= rows[0] <= rows[-1] < count
    assert len(rows) >= min(count, sensitivity.SAMPLED_ROWS - 16)
    assert len(rows) <= sensitivity.SAMPLED_ROWS + 16
    assert {row // 16 * 16 + i for row in rows for i in range(16) if row // 16 * 16 + i < count} == set(rows)


def _choices(kls: list[float]) -> list[Choice]:
    return [Choice(Piece("m", slice(0, 1), True), "gptq", {"codec": f"{i}"}, 9 - i, kl) for i, kl in enumerate(kls)]


def test_a_measurement_corrects_the_estimates_that_it_is_nearest_to() -> None:
    choices = _choices([0.001, 0.002, 0.5, 1.0])
    found = corrected(choices, {"gptq codec=1": 0.004, "gptq codec=2": 0.25})
    assert [c.kl for c in found] == pytest.approx([0.002, 0.004, 0.25, 0.5])
    assert corrected(choices, {}) == choices


def test_rivals_have_about_the_bytes_and_may_lose_less() -> None:
    sizes = [100, 80, 100, 150, 139]
    found = _choices([1.0, 1.5, 1.7, 0.5, 0.1])
    choices = [replace(choice, size_bytes=size) for choice, size in zip(found, sizes, strict=True)]
    assert rivals(choices[0], choices) == [choices[0], choices[1], choices[4]]


@pytest.mark.parametrize("ratio", [4.0, 5.0, 6.0])
def test_what_is_chosen_was_measured_and_fits(dense: GPT2, ratio: float) -> None:
    search = Search(dense=dense, ids=IDS)
    assert search.estimates.keys() == dense.matrices().keys()
    for name, choices in search.estimates.items():
        assert [(c.method, c.options) for c in choices] == candidates(name, dense.matrices()[name].shape)
        assert all(c.kl > 0 for c in choices)
    found = _of_ratio(search, ratio)
    reference = Reference.of(dense, IDS)
    assert found.chosen.keys() == found.matrices.keys() == search.estimates.keys()
    for name, choice in found.chosen.items():
        assert choice.size_bytes == found.matrices[name].num_bytes
        assert choice.kl == reference.kl({name: found.matrices[name]})
        assert choice in found.choices[name]
    spent = sum(c.size_bytes for c in found.chosen.values()) + budget.vector_bytes(dense, "fp32")
    assert spent <= budget.dense_bytes(dense, "all") / ratio
    assert 0.3 < found.predicted / found.measured < 3
    rows = budget.explain(found.choices, found.chosen)
    assert [row["piece"] for row in rows] == list(search.estimates)
    assert all(math.isfinite(row["kl"]) for row in rows)


class _KilledError(Exception):
    """In place of a signal."""


def _killing(after: int) -> "Iterable[int]":
    left = itertools.count(after, -1)

    def progress(items: Iterable[T], *, label: str, total: int) -> Iterable[T]:
        for item in items:
            if next(left) == 0:
                raise _KilledError
            yield item

    return progress  # type: ignore[return-value]


@pytest.mark.parametrize("after", [0, 1, 4, 9, 11, 17])
def test_a_killed_search_resumes_where_it_was_and_ends_alike(dense: GPT2, after: int, tmp_path: Path) -> None:
    expected, said = _of_ratio(Search(dense=dense, ids=IDS), 5.0), list[str]()
    journal = Journal(tmp_path, identity(dense, IDS))
    with pytest.raises(_KilledError):
        _of_ratio(Search(dense=dense, ids=IDS, journal=journal, progress=_killing(after)), 5.0)  # type: ignore[arg-type]
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    resumed = _of_ratio(Search(dense=dense, ids=IDS, journal=journal, echo=said.append), 5.0)
    pieces = len(dense.matrices())
    assert said == ([f"resumes: {after} of {pieces} pieces were estimated before"] if 0 < after < pieces else [])
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert (resumed.chosen, resumed.choices, resumed.measured) == (
        expected.chosen,
        expected.choices,
        expected.measured,
    )
    for name, form in expected.matrices.items():
        tensors = resumed.matrices[name].tensors()
        assert all(torch.equal(tensors[key], tensor) for key, tensor in form.tensors().items())


def test_what_is_kept_is_neither_estimated_nor_found_again(
    dense: GPT2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path, identity(dense, IDS))
    first = _of_ratio(Search(dense=dense, ids=IDS, journal=journal), 5.0)

    def never(*arguments: list[str]) -> None:
        raise AssertionError

    def none(_dense: GPT2, _ids: Tensor, names: list[str]) -> list[str]:
        assert not names
        return names

    monkeypatch.setattr(sensitivity, "gradients", never)
    monkeypatch.setattr(calibrate, "by_layer", none)
    again = _of_ratio(Search(dense=dense, ids=IDS, journal=journal), 5.0)
    assert (again.chosen, again.measured) == (first.chosen, first.measured)


def test_a_damaged_file_is_found_again(dense: GPT2, tmp_path: Path) -> None:
    journal = Journal(tmp_path, identity(dense, IDS))
    first = _of_ratio(Search(dense=dense, ids=IDS, journal=journal), 5.0)
    for path in tmp_path.iterdir():
        path.write_bytes(b"damaged")
    again = _of_ratio(Search(dense=dense, ids=IDS, journal=journal), 5.0)
    assert (again.chosen, again.measured) == (first.chosen, first.measured)


def test_where_nothing_can_be_kept_one_line_says_so(dense: GPT2, tmp_path: Path) -> None:
    said = list[str]()
    (tmp_path / "file").touch()
    journal = Journal(tmp_path / "file", "ours", said.append)
    assert _of_ratio(Search(dense=dense, ids=IDS, journal=journal), 5.0).matrices
    assert len(said) == 1
    assert said[0].startswith("cannot keep what was found in")


def test_what_is_found_has_an_identity(dense: GPT2) -> None:
    ours = identity(dense, IDS)
    assert ours == identity(tiny_model(SHAPE).expanded(), IDS.clone())
    assert ours != identity(tiny_model(SHAPE, seed=1).expanded(), IDS)
    assert ours != identity(dense, IDS.flip(1))


def test_statistics_are_those_of_one_layer_at_a_time(dense: GPT2) -> None:
    asked: list[Tensor] = []
    names = ["h.1.mlp.c_fc", "h.0.attn.c_proj"]
    for name, statistics in calibrate.by_layer(dense, IDS, names):
        asked.append(statistics.second_moment)
        assert torch.equal(asked[-1], calibrate.collect(dense, IDS)[name].second_moment)
    assert len(asked) == 2


def test_only_a_target_is_searched_and_its_bytes_alone_count() -> None:
    shape = GPT2Config(vocab_size=4096, n_positions=16, n_embd=16, n_layer=1, n_head=2, n_inner=32, eos_token_id=0)
    dense = tiny_model(shape).expanded()
    ids = torch.randint(4096, (8, 16), generator=torch.Generator().manual_seed(0))
    search = Search(dense=dense, ids=ids, only=lambda name: is_target(name, "embedding"))
    config = budget.Config(ratio=6.0, target="embedding")
    found = search.found(lambda choices: budget.choose(choices, config, dense)[0])
    assert found.matrices.keys() == {"wte"}
    table = found.matrices["wte"]
    assert table.shape == dense.matrices()["wte"].shape
    assert 4 * 4096 * 16 / 7 < table.num_bytes <= 4 * 4096 * 16 / 6
