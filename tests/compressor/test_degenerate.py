"""Matrices that no model should have and some have: nothing traces back, and nothing that is not finite comes out."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from compressor import huggingface
from compressor.artifact.gpt2_config import GPT2Config
from compressor.cli import main
from compressor.codecs import Coded, codec_named
from compressor.formats import Dense
from compressor.gpt2 import GPT2
from compressor.methods import METHODS, gptq, quantize
from compressor.methods.base import Statistics
from compressor.methods.whitened_svd import root_of
from compressor.progress import silent
from compressor.recipes import budget
from compressor.recipes.build import build
from compressor.recipes.calibrate import collect
from compressor.recipes.context import Context
from compressor.recipes.plans import Recipe
from compressor.recipes.search import Search
from service.engine.models import load
from tests.cases import statistics
from tests.conftest import TINY, tiny_model

TOKENIZER = (huggingface.EMBEDDED_FOLDER / "tokenizer.json").read_bytes()
MOST_FP32 = torch.finfo(torch.float32).max
ROUNDING_CODECS = ["int8", "int4", "int3", "int2", "int4-row", "int3-row", "int2-row", "int3-g16-zp", "int2-row-zp"]
ROUNDING_CODECS += ["tr1", "tr2", "tr3", "tr4"]


def _normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def _outliers(size: float, rows: int, columns: int) -> Tensor:
    """Return small values, and one `size` times as large in every row."""
    weight = _normal(rows, columns)
    weight[torch.arange(rows), torch.arange(rows) % columns] = size
    return weight


def _dead(weight: Tensor, *, rows: slice = slice(0), columns: slice = slice(0)) -> Tensor:
    weight = weight.clone()
    weight[rows] = 0
    weight[:, columns] = 0
    return weight


# Every kind of matrix [rows, columns] that a method may meet, by name.
MATRICES: dict[str, Callable[[int, int], Tensor]] = {
    "zeros": torch.zeros,
    "rank 1": lambda rows, columns: _normal(rows, 1) @ _normal(1, columns),
    "zero rows": lambda rows, columns: _dead(_normal(rows, columns), rows=slice(rows // 2)),
    "zero columns": lambda rows, columns: _dead(_normal(rows, columns), columns=slice(columns // 2)),
    "equal values": lambda rows, columns: torch.full((rows, columns), 0.3),
    "equal columns": lambda rows, columns: _normal(rows, 1).expand(rows, columns).contiguous(),
    "one value": lambda rows, columns: torch.eye(rows * columns)[-1].view(rows, columns),
    "outliers": lambda rows, columns: _outliers(100.0, rows, columns),
    "huge outliers": lambda rows, columns: _outliers(3e4, rows, columns),
    "tiny": lambda rows, columns: 1e-30 * _normal(rows, columns),
    "denormal": lambda rows, columns: 1e-40 * _normal(rows, columns),
    "fp16's largest": lambda rows, columns: 65504 * _normal(rows, columns).sign(),
    "bf16's largest": lambda rows, columns: torch.finfo(torch.bfloat16).max * _normal(rows, columns).sign(),
    "fp32's largest": lambda rows, columns: MOST_FP32 * _normal(rows, columns).sign(),
    "nearly fp32's largest": lambda rows, columns: 3e38 * (2 * torch.rand(rows, columns) - 1),
}
# Those that 16-bit floats cannot hold, so that it may be refused to store them.
TOO_LARGE = {name for name in MATRICES if name.endswith("largest")}


def relative(change: Tensor, weight: Tensor) -> Tensor:
    """Return the error of every row over its norm [out]; a row of zeros has an error of 0 or infinity."""
    unit = weight.double().abs().amax(-1, keepdim=True)
    unit = torch.where(unit > 0, unit, 1)
    sizes: Tensor = (weight.double() / unit).norm(dim=-1).clamp_min(1e-300)
    error: Tensor = (change.double() / unit).norm(dim=-1)
    return error / sizes


@pytest.mark.parametrize("shape", [(6, 40), (1, 7), (5, 1)])
@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("codec", ROUNDING_CODECS)
def test_rounding_is_finite_and_never_worse_than_zeros(codec: str, matrix: str, shape: tuple[int, int]) -> None:
    weight = MATRICES[matrix](*shape)
    stored = Coded.encode(codec_named(codec), weight).decode()
    assert torch.isfinite(stored).all()
    assert (relative(stored.double() - weight.double(), weight) <= 1 + 1e-6).all()


def unclipped(codec: str, weight: Tensor) -> Tensor:
    """Return `weight` [out, in], one group a row, rounded to the nearest of evenly spaced levels, in fp64."""
    named = codec_named(codec)
    w = weight.double()
    if codec == "int8":
        step = w.abs().amax(-1, keepdim=True) / 127
        return torch.round(w / torch.where(step > 0, step, 1)) * step
    steps = 2**named.bits - 1  # type: ignore[attr-defined]
    low, high = w.amin(-1, keepdim=True), w.amax(-1, keepdim=True)
    if not codec.endswith("zp"):
        high = torch.maximum(high, -low)
        low = -high
    step = (high - low) / steps
    rounded: Tensor = torch.round((w - low) / torch.where(step > 0, step, 1)).clamp(0, steps) * step + low
    return rounded


values = st.floats(-65536, 65536, width=32)
rows = st.lists(values, min_size=8, max_size=8) | st.tuples(values, st.floats(0, 4, width=32)).map(
    lambda pair: [pair[0], *(pair[1] * (-1) ** k * k / 7 for k in range(7))]
)


@given(rows, st.sampled_from(["int8", "int4-row", "int3-row", "int2-row", "int4-row-zp", "int3-row-zp", "int2-row-zp"]))
@example([100.0, 0.1, -0.1, 0.1, -0.1, 0.1, -0.1, 0.1], "int2-row")
@example([-100.0, 100.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.1], "int2-row-zp")
def test_no_row_is_stored_worse_than_zeros_or_than_rounded_to_nearest(row: list[float], codec: str) -> None:
    weight = torch.tensor([row])
    stored = Coded.encode(codec_named(codec), weight).decode()
    error = (stored.double() - weight.double()).norm()
    nearest = (unclipped(codec, weight) - weight.double()).norm()
    # The levels are stored in bf16, which moves them by 2^-8 of the range at most, and has nothing below 1e-40.
    slack = (2**-8 * 2 * weight.double().norm() + 1e-37) * weight.shape[1] ** 0.5
    assert error <= weight.double().norm() * (1 + 1e-6)
    assert error <= nearest + slack


@given(st.integers(-100, 100), st.sampled_from(ROUNDING_CODECS))
def test_a_power_of_2_changes_no_code(exponent: int, codec: str) -> None:
    weight = _normal(3, 40)
    plain, moved = (Coded.encode(codec_named(codec), w).parts() for w in (weight, weight * 2.0**exponent))
    assert torch.equal(plain["codes"], moved["codes"])
    assert torch.equal(plain["scale"].float() * 2.0**exponent, moved["scale"].float())


def test_an_outlier_costs_the_other_values_of_its_row_little() -> None:
    weight = _outliers(30.0, 4, 768)
    stored = Coded.encode(codec_named("int2-row"), weight).decode()
    small = weight.abs() < 10
    assert ((stored - weight)[small].norm() / weight[small].norm()) < 0.6


ROWS, WIDTH = 36, 12  # q, k and v of 4 heads
NEVER_EXACT = {"direction_ae"}  # which is trained for so many steps, whatever the rows are
OPTIONS: dict[str, dict[str, object]] = {"direction_ae": {"rank": 2, "epochs": 2}, "joint_qk": {"rank": 2, "heads": 4}}


def _dead_inputs() -> Statistics:
    given = statistics(ROWS, WIDTH)
    alive = (torch.arange(WIDTH) >= 3).float()
    return dataclasses.replace(given, second_moment=given.second_moment * alive * alive[:, None])


# Every kind of statistics, by name.
STATISTICS: dict[str, Statistics] = {
    "ordinary": statistics(ROWS, WIDTH),
    "dead inputs": _dead_inputs(),
    "one input": Statistics(second_moment=torch.ones(WIDTH, WIDTH)),
    "zeros": Statistics(second_moment=torch.zeros(WIDTH, WIDTH)),
    "no row matters": dataclasses.replace(statistics(ROWS, WIDTH), row_weights=torch.zeros(ROWS)),
    "tiny inputs": Statistics(second_moment=1e-40 * torch.eye(WIDTH)),
    "large inputs": Statistics(second_moment=3e38 * torch.eye(WIDTH)),
}
COMPRESSING = [name for name, method in METHODS.items() if method.target != "none"]


@pytest.mark.parametrize("given", STATISTICS)
@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("method", COMPRESSING)
def test_no_method_stops_at_a_matrix_or_makes_what_is_not_finite(method: str, matrix: str, given: str) -> None:
    weight = MATRICES[matrix](ROWS, WIDTH)
    chosen = METHODS[method]
    options = OPTIONS.get(method, {"rank": 2} if "rank" in chosen.config.__dataclass_fields__ else {})
    refused: str | None = None
    try:
        form = chosen.found("h.0.attn.c_attn", weight, chosen.config(**options), STATISTICS[given], silent)
    except ValueError as error:
        refused = str(error)
    if refused is not None:
        assert matrix in TOO_LARGE
        assert refused.startswith("h.0.attn.c_attn: ")
        return
    stored = form.dense()
    assert torch.isfinite(stored).all()
    assert torch.isfinite(form.matmul(torch.eye(WIDTH))).all() or matrix in TOO_LARGE
    if given == "ordinary" and matrix not in TOO_LARGE and method not in NEVER_EXACT:
        assert (stored.double() - weight.double()).norm() <= 1.1 * weight.double().norm()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", COMPRESSING)
def test_a_matrix_that_is_not_finite_is_refused_by_name(method: str, bad: float) -> None:
    weight = _normal(ROWS, WIDTH)
    weight[3, 4] = bad
    chosen = METHODS[method]
    with pytest.raises(ValueError, match=r"h\.0\.attn\.c_attn: must be finite"):
        chosen.found(
            "h.0.attn.c_attn", weight, chosen.config(**OPTIONS.get(method, {})), STATISTICS["ordinary"], silent
        )


@pytest.mark.parametrize("damping", [0.0, 0.01])
@pytest.mark.parametrize("codec", ROUNDING_CODECS)
def test_where_inputs_say_nothing_gptq_rounds_to_nearest(codec: str, damping: float) -> None:
    weight = _normal(ROWS, WIDTH)
    found = gptq.compress(weight, gptq.Config(codec=codec, damping=damping), STATISTICS["zeros"]).tensors()
    nearest = quantize.compress(weight, quantize.Config(codec=codec)).tensors()
    assert found.keys() == nearest.keys()
    if codec.startswith("tr"):  # whose scales are sums in another order
        torch.testing.assert_close(found.pop("matrix.scale"), nearest.pop("matrix.scale"))
    assert all(torch.equal(found[name], nearest[name]) for name in found)


@given(st.integers(0, WIDTH), st.sampled_from([0.0, 1e-12, 0.01]), st.integers(-60, 60))
def test_every_moment_has_a_root(rank: int, damping: float, exponent: int) -> None:
    inputs = _normal(rank, WIDTH) * 2.0**exponent
    moment = inputs.T @ inputs
    root = root_of(moment, damping)
    assert torch.isfinite(root).all()
    assert (root.diagonal() > 0).all()
    if rank == WIDTH:
        mean = moment.double().diagonal().mean()
        expected = moment.double() + damping * mean * torch.eye(WIDTH)
        torch.testing.assert_close(root @ root.T, expected, rtol=1e-6, atol=1e-6 * float(mean))


SMALL = GPT2Config(vocab_size=60, n_positions=16, n_embd=12, n_layer=1, n_head=2, n_inner=24, eos_token_id=0)
IDS = torch.randint(60, (8, 16), generator=torch.Generator().manual_seed(0))


def _with(name: str, weight: Tensor) -> GPT2:
    return tiny_model(SMALL).with_matrices({name: Dense.of(weight, "fp32")}).expanded()


@pytest.mark.parametrize("name", ["wte", "h.0.attn.c_attn", "h.0.mlp.c_fc", "h.0.mlp.c_proj"])
@pytest.mark.parametrize("matrix", MATRICES.keys() - TOO_LARGE)
def test_a_budget_takes_any_matrix(name: str, matrix: str) -> None:
    dense = _with(name, MATRICES[matrix](*SMALL.matrix_shapes()[name]))
    search = Search(dense=dense, ids=IDS, only=lambda other: other == name)
    assert all(0 <= choice.kl < float("inf") for choice in search.estimates[name])
    for size in (budget.smallest(search.estimates), 10**6):
        found = search.found(partial(budget.spend, size_bytes=size))
        assert torch.isfinite(found.matrices[name].dense()).all()


def test_a_model_that_is_certain_of_every_token_weighs_all_rows() -> None:
    table = torch.zeros(60, 12)
    table[:, 0] = 1e6 * torch.arange(60)
    for statistics_ in collect(_with("wte", table), IDS).values():
        for tensor in (statistics_.second_moment, statistics_.row_weights):
            assert tensor is None or torch.isfinite(tensor).all()


OVERFLOWING: dict[str, tuple[str, float]] = {
    "a token too large for a norm": ("wte", 1e30),
    "queries and keys": ("h.0.attn.c_attn", 1e30),
    "a residual stream": ("h.0.mlp.c_proj", 3e38),
}


@pytest.mark.parametrize("case", OVERFLOWING)
def test_weights_whose_logits_are_not_finite_are_refused_at_build_by_name(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, size = OVERFLOWING[case]
    model = tiny_model(TINY)
    weight = size * model.matrices()[name].dense().sign()
    folder = tmp_path / "huge"
    huggingface.export(model.with_matrices({name: Dense.of(weight, "fp32")}), TOKENIZER, folder)
    for plan in (["--method", "dense"], ["--ratio", "4"]):
        with pytest.raises(SystemExit) as code:
            main(["compress", str(folder), *plan, "--out", str(tmp_path / "out")])
        error = capsys.readouterr().err
        assert (code.value.code, len(error.splitlines())) == (2, 1), error
        assert "not finite" in error
        assert name.rpartition(".")[0] in error
        assert not (tmp_path / "out").exists()


def test_what_is_sealed_is_loaded_again_however_large_its_logits(tmp_path: Path) -> None:
    model = tiny_model(TINY)
    table = 3e4 * model.matrices()["wte"].dense()
    huggingface.export(model.with_matrices({"wte": Dense.of(table, "fp32")}), TOKENIZER, tmp_path / "large")
    text = tmp_path / "text.txt"
    text.write_text("The tide was out, and the boats leaned upon the hard. " * 5)
    build(
        Context(checkpoint=huggingface.load(str(tmp_path / "large"))),
        Recipe(method="quantize", options={}),
        tmp_path / "out",
        text=text,
    )
    assert load(tmp_path / "out")
