"""Matrices that no model should have and some have: nothing traces back, and nothing that is not finite comes out."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from compressor.codecs import Coded, codec_named

MOST_FP32 = torch.finfo(torch.float32).max
ROUNDING_CODECS = ["int8", "int4", "int3", "int2", "int4-row", "int3-row", "int2-row", "int3-g16-zp", "int2-row-zp"]


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
    return (change.double() / unit).norm(dim=-1) / (weight.double() / unit).norm(dim=-1).clamp_min(1e-300)


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
    return torch.round((w - low) / torch.where(step > 0, step, 1)).clamp(0, steps) * step + low


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
