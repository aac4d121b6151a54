"""Spending bytes: what is bought fits, is never worse for more, and is the best there is."""

import itertools
import math
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compressor.artifact.gpt2_config import GPT2Config
from compressor.formats import Dense, Format
from compressor.methods import quantize
from compressor.methods.base import Statistics, is_target
from compressor.recipes import budget
from compressor.recipes.budget import Choice, Piece
from compressor.recipes.calibrate import collect
from compressor.recipes.heal import distillation_loss
from compressor.recipes.journal import Journal
from tests.conftest import tiny_model

T = TypeVar("T")
FORM: Format = Dense.of(torch.zeros(1, 1), "fp32")
points = st.lists(st.tuples(st.integers(1, 60), st.integers(0, 60)), min_size=1, max_size=6)
matrices = st.lists(points, min_size=1, max_size=4)


def _choices(name: str, found: list[tuple[int, int]]) -> list[Choice]:
    piece = Piece(name, slice(0, 1), True)
    return [Choice(piece, "quantize", {"codec": f"{i}"}, size, float(kl), FORM) for i, (size, kl) in enumerate(found)]


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


def test_every_matrix_is_measured_alone_and_explained() -> None:
    shape = GPT2Config(vocab_size=60, n_positions=16, n_embd=16, n_layer=1, n_head=2, n_inner=32, eos_token_id=0)
    dense = tiny_model(shape).expanded()
    ids = torch.randint(60, (8, 16), generator=torch.Generator().manual_seed(0))
    measured = budget.measure(dense, lambda: collect(dense, ids), ids)
    assert measured.keys() == dense.matrices().keys()
    for name, choices in measured.items():
        assert {(c.method, str(c.options)) for c in choices} == {
            (m, str(o)) for m, o in budget.candidates(name, dense.matrices()[name].shape)
        }
        best = max(choices, key=lambda c: c.size_bytes)
        assert 0 <= best.kl < 0.05
        assert all(c.size_bytes == c.form.num_bytes for c in choices)
    chosen, vectors = budget.choose(measured, budget.Config(ratio=5.0), dense.with_vectors("fp16"))
    assert vectors == "fp16"
    parameters = sum(f.out_features * f.in_features for f in dense.matrices().values())
    parameters += sum(prod(v.shape) for v in dense.vectors().values())
    spent = sum(c.size_bytes for c in chosen.values()) + budget.vector_bytes(dense, "fp16")
    assert spent <= 4 * parameters / 5
    rows = budget.explain(measured, chosen)
    assert [row["piece"] for row in rows] == list(measured)
    assert all(math.isfinite(row["kl"]) for row in rows)


def test_every_candidate_is_told_of_and_what_a_journal_holds_is_not_measured_again(tmp_path: Path) -> None:
    shape = GPT2Config(vocab_size=60, n_positions=16, n_embd=16, n_layer=1, n_head=2, n_inner=32, eos_token_id=0)
    dense = tiny_model(shape).expanded()
    ids = torch.randint(60, (8, 16), generator=torch.Generator().manual_seed(0))
    statistics, told = collect(dense, ids), []

    def counting(items: Iterable[T], *, label: str, total: int) -> Iterable[T]:
        told.append([total, 0])
        for item in items:
            told[-1][1] += 1
            yield item
            if len(told) == 2 and told[-1][1] == 40:
                raise KeyboardInterrupt

    def measured(identity: str) -> dict[str, list[Choice]]:
        said.clear()
        journal = Journal(tmp_path, identity, said.append)
        return budget.measure(dense, lambda: statistics, ids, progress=counting, echo=said.append, journal=journal)

    said: list[str] = []
    expected = budget.measure(dense, lambda: statistics, ids, progress=counting)
    count = sum(map(len, expected.values()))
    assert told == [[count, count]]
    with pytest.raises(KeyboardInterrupt):
        measured("ours")
    whole = len(list(tmp_path.iterdir()))
    resumed = measured("ours")
    kept = sum(map(len, list(expected.values())[:whole]))
    assert 0 < kept <= 40
    assert told[2] == [count - kept, count - kept]
    assert said == [f"resumes: {whole} of {len(expected)} pieces were measured before"]
    for name, choices in expected.items():
        for one, other in zip(choices, resumed[name], strict=True):
            assert (str(one), one.size_bytes, one.kl) == (str(other), other.size_bytes, other.kl)
            tensors = other.form.tensors()
            assert all(torch.equal(tensors[key], tensor) for key, tensor in one.form.tensors().items())
    measured("theirs")
    assert told[3] == [count, count]
    assert said == []


def test_all_that_was_measured_needs_no_statistics_again(tmp_path: Path) -> None:
    shape = GPT2Config(vocab_size=60, n_positions=16, n_embd=16, n_layer=1, n_head=2, n_inner=32, eos_token_id=0)
    dense, ids = tiny_model(shape).expanded(), torch.arange(16).view(1, 16)
    journal = Journal(tmp_path, budget.identity(dense, ids))
    first = budget.measure(dense, lambda: collect(dense, ids), ids, journal=journal)

    def never() -> Mapping[str, Statistics]:
        raise AssertionError

    again = budget.measure(dense, never, ids, journal=journal)
    assert {name: [c.kl for c in found] for name, found in again.items()} == {
        name: [c.kl for c in found] for name, found in first.items()
    }


def test_where_nothing_can_be_kept_one_line_says_so(tmp_path: Path) -> None:
    shape = GPT2Config(vocab_size=60, n_positions=16, n_embd=16, n_layer=1, n_head=2, n_inner=32, eos_token_id=0)
    dense, ids, said = tiny_model(shape).expanded(), torch.arange(16).view(1, 16), list[str]()
    (tmp_path / "file").touch()
    journal = Journal(tmp_path / "file", "ours", said.append)
    assert all(budget.measure(dense, lambda: collect(dense, ids), ids, journal=journal).values())
    assert len(said) == 1
    assert said[0].startswith("cannot keep what was measured in")


@torch.inference_mode()
def test_what_is_measured_is_the_divergence_of_the_whole_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = GPT2Config(vocab_size=60, n_positions=16, n_embd=16, n_layer=2, n_head=2, n_inner=32, eos_token_id=0)
    dense = tiny_model(shape).expanded()
    untied = dense.with_matrices({"lm_head": dense.matrices()["wte"]})
    ids = torch.randint(60, (8, 16), generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(budget, "DRAWN_TOKENS", 20_000)
    for model in (dense, untied):
        reference = budget.Reference.of(model, ids)
        for name, form in model.matrices().items():
            other = model.with_matrices({name: quantize.compress(form.dense(), quantize.Config(codec="int3"))})
            logits = [m.logits(m(ids).flatten(0, 1)) for m in (other, model)]
            exact = float(distillation_loss(*logits)) / ids.numel()
            assert reference.kl(other, name) == pytest.approx(exact, rel=0.05, abs=1e-6), name


def test_what_is_measured_has_an_identity() -> None:
    shape = GPT2Config(vocab_size=60, n_positions=16, n_embd=16, n_layer=1, n_head=2, n_inner=32, eos_token_id=0)
    dense, ids = tiny_model(shape).expanded(), torch.arange(16).view(1, 16)
    ours = budget.identity(dense, ids)
    assert ours == budget.identity(tiny_model(shape).expanded(), ids.clone())
    assert ours != budget.identity(tiny_model(shape, seed=1).expanded(), ids)
    assert ours != budget.identity(dense, ids.flip(1))


def test_a_large_table_is_cut_into_blocks_of_doubling_length_and_put_together_again() -> None:
    cut = budget.pieces("wte", (16384, 8))
    assert [piece.rows for piece in cut] == [
        slice(0, 512),
        slice(512, 1024),
        slice(1024, 2048),
        slice(2048, 4096),
        slice(4096, 8192),
        slice(8192, 16384),
    ]
    table = torch.randn(16384, 8, generator=torch.Generator().manual_seed(0))
    chosen = [
        Choice(piece, "quantize", {}, 0, 0.0, Dense.of(table[piece.rows], "fp32"))
        for piece in reversed([*cut, *budget.pieces("wpe", (16, 8))])
        if piece.matrix == "wte"
    ]
    assert torch.equal(budget.assembled(chosen)["wte"].dense(), table)


@pytest.mark.parametrize("shape", [(4096, 8), (50257, 8), (5000, 8)])
def test_blocks_cover_a_table_once(shape: tuple[int, int]) -> None:
    cut = budget.pieces("lm_head", shape)
    assert cut[0].rows.start == 0
    assert cut[-1].rows.stop == shape[0]
    assert all(a.rows.stop == b.rows.start for a, b in itertools.pairwise(cut))
    assert len(budget.pieces("wpe", shape)) == len(budget.pieces("wte", (4095, 8))) == 1


def test_only_a_target_is_measured_and_its_bytes_alone_count() -> None:
    shape = GPT2Config(vocab_size=4096, n_positions=16, n_embd=16, n_layer=1, n_head=2, n_inner=32, eos_token_id=0)
    dense = tiny_model(shape).expanded()
    ids = torch.randint(4096, (8, 16), generator=torch.Generator().manual_seed(0))
    measured = budget.measure(dense, lambda: collect(dense, ids), ids, only=lambda name: is_target(name, "embedding"))
    assert {choices[0].piece.matrix for choices in measured.values()} == {"wte"}
    chosen, _ = budget.choose(measured, budget.Config(ratio=6.0, target="embedding"), dense.with_vectors("fp16"))
    table = budget.assembled(chosen.values())["wte"]
    assert table.shape == dense.matrices()["wte"].shape
    assert 4 * 4096 * 16 / 7 < table.num_bytes <= 4 * 4096 * 16 / 6


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
