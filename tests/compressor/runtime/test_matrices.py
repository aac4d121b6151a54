"""The runtime's matrices and torch's formats are the same matrices: every format by every codec on every CPU's path."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from compressor.artifact.layouts import integers_named
from compressor.codecs import codec_named
from compressor.formats import Dense, Format
from compressor.runtime._decoder import INSTRUCTIONS, Matrix
from compressor.runtime.matrices import BYTE_GROUP, matmul, rows
from tests.cases import CODECS, FORMAT_CASES, format_case
from tests.compressor.runtime.replay import BAD

STEP = 1 / 16319  # of a rounded activation, of the largest


def normal(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


@pytest.fixture(params=list(itertools.product(FORMAT_CASES, CODECS)), ids="-".join)
def form(request: pytest.FixtureRequest) -> Format:
    return format_case(*request.param)


def test_rows(form: Format) -> None:
    dense = form.dense().numpy()
    ids = np.array([[0, form.out_features - 1], [form.out_features // 2, 0]])
    found = rows(form.as_stored(), ids)
    if isinstance(form, Dense):
        np.testing.assert_array_equal(found, dense[ids])
    np.testing.assert_allclose(found, dense[ids], rtol=1e-4, atol=1e-5 * abs(dense).max())


@pytest.mark.parametrize("count", [1, 3, 8, 21])
def test_matmul(form: Format, count: int) -> None:
    x = normal(count, form.in_features)
    dense = form.dense().numpy().astype(np.float64)
    found = matmul(form.as_stored(), x)
    lost = 3 * STEP * abs(x).max(-1, keepdims=True) * np.linalg.norm(np.abs(dense).sum(-1)) / len(dense) ** 0.5
    assert (abs(found - x @ dense.T) <= lost + 1e-5 * abs(x @ dense.T).max() + 1e-6).all()


@pytest.mark.parametrize("activations", [16, 8])
def test_a_row_is_its_own(form: Format, activations: int) -> None:
    """Bit for bit: whatever is beside it, with any number of threads and on every set of instructions."""
    matrix, x = form.as_stored(activations=activations), normal(19, form.in_features)
    whole = matmul(matrix, x, threads=3)
    for instructions in INSTRUCTIONS:
        np.testing.assert_array_equal(matmul(matrix, x[5:9], instructions=instructions), whole[5:9])
    np.testing.assert_array_equal(matmul(matrix, x[4]), whole[4])


@given(
    n=st.integers(1, 70),
    k=st.integers(1, 1100),
    codec=st.sampled_from(CODECS),
    rows=st.integers(0, 12),
    scale=st.sampled_from([1e-30, 1.0, 1e30]),
)
def test_any_shape(n: int, k: int, codec: str, rows: int, scale: float) -> None:
    weight = torch.from_numpy(normal(n, k))
    form = Dense.of(weight, codec)
    x = normal(rows, k) * np.float32(scale)
    found = [matmul(form.as_stored(), x, instructions=name) for name in INSTRUCTIONS]
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)
    expected = (x.astype(np.float64) @ form.dense().numpy().astype(np.float64).T) / scale
    np.testing.assert_allclose(found[0] / np.float32(scale), expected, atol=5 * STEP * k, rtol=1e-4)


def in_bytes(x: NDArray[np.float32], group: int) -> NDArray[np.float64]:
    """Return rows whose every group of columns is rounded to 255 steps."""
    rounded = np.empty(x.shape)
    for first in range(0, x.shape[1], group):
        part = x[:, first : first + group]
        step = abs(part).max(1, keepdims=True).clip(1e-30) / np.float32(127)
        rounded[:, first : first + group] = np.rint(part * (1 / step)) * step.astype(np.float64)
    return rounded


@given(
    n=st.integers(1, 70),
    k=st.integers(1, 700),
    codec=st.sampled_from(["int4", "int3", "int2", "int4-g100", "int3-g8", "int4-g32-zp", "int2-g128-zp", "int8"]),
    rows=st.sampled_from([1, 2, 4, 7, 8, 9, 16, 17, 40, 70]),
    scale=st.sampled_from([1e-20, 1.0, 1e20]),
)
def test_activations_of_8_bits(n: int, k: int, codec: str, rows: int, scale: float) -> None:
    """Rounded in the groups of the codes; codes whose groups are large meet 16 bits all the same."""
    form = Dense.of(torch.from_numpy(normal(n, k)), codec)
    integers = integers_named(codec)
    group = min((integers and integers.group) or k, k)
    x = normal(rows, k) * np.float32(scale)
    found = [matmul(form.as_stored(activations=8), x, instructions=name) for name in INSTRUCTIONS]
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)
    if group > BYTE_GROUP:
        np.testing.assert_array_equal(found[0], matmul(form.as_stored(), x))
        return
    expected = in_bytes(x, group) @ form.dense().numpy().astype(np.float64).T / scale
    np.testing.assert_allclose(found[0] / np.float32(scale), expected, atol=2e-5 * k**0.5, rtol=1e-4)


def test_extremes_do_not_overflow() -> None:
    """The largest codes and activations of either sign, in as many columns as there may be."""
    for codec, k in itertools.product(["int8", "int4-row", "int3-row", "int2-row", "int4-row-zp"], [512, 1024, 5000]):
        values = torch.where(torch.arange(k) % 7 == 0, -1.0, 1.0).expand(2, k)
        form = Dense.of(values.contiguous() * torch.tensor([[1.0], [-1.0]]), codec)
        x = np.sign(values[:1].numpy()) * np.float32(3)
        for instructions in INSTRUCTIONS:
            found = matmul(form.as_stored(), np.ascontiguousarray(x), instructions=instructions)
            np.testing.assert_allclose(found, x @ form.dense().numpy().T, rtol=2e-4)


def test_what_it_occupies() -> None:
    for codec, (n, k) in itertools.product(["fp16", "int8", "int4", "int3", "int2"], [(512, 256), (768, 3072)]):
        form = Dense.of(torch.from_numpy(normal(n, k)), codec)
        assert form.as_stored().num_bytes <= 1.02 * form.num_bytes + 4096, codec_named(codec).name


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BAD[message](Matrix.floats(np.ones((2, 4), np.float32)))


@pytest.mark.parametrize("ids", [[-1], [2], [0, 2]])
def test_ids_outside(ids: list[int]) -> None:
    with pytest.raises(IndexError, match=r"ids must lie in \[0, 2\)"):
        rows(Matrix.floats(np.ones((2, 4), np.float32)), np.array(ids))
