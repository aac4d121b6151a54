"""A head of cores: merged where that makes it cheaper, and the same matrix."""

from math import prod

import numpy as np
import pytest
import torch

from compressor.formats import TTMatrix
from compressor.runtime import trains
from compressor.runtime.matrices import matmul, rows
from compressor.tensors import array

# in, out and ranks of cores, and whether any of them are worth merging
SHAPES = {
    "the first two": ([4, 8, 8], [16, 32, 32], [1, 8, 8, 1], True),
    "in the middle": ([2, 4, 4, 2], [8, 4, 4, 8], [1, 16, 32, 16, 1], True),
    "one core": ([8], [16], [1, 1], False),
    "two cores": ([4, 8], [16, 8], [1, 4, 1], False),
    "ranks 1": ([4, 4, 4], [8, 8, 8], [1, 1, 1, 1], False),
}


def train(name: str, codec: str = "fp32") -> TTMatrix:
    ins, outs, ranks, _ = SHAPES[name]
    random = torch.Generator().manual_seed(0)
    shapes = zip(ranks, ins, outs, ranks[1:], strict=False)
    cores = [torch.randn(shape, generator=random) / shape[0] ** 0.5 for shape in shapes]
    return TTMatrix.of(cores, (prod(outs) - 3, prod(ins) - 1), codec)


@pytest.mark.parametrize("codec", ["fp32", "fp16", "bf16", "int8", "int4"])
@pytest.mark.parametrize("name", SHAPES)
def test_a_head_is_the_same_matrix(name: str, codec: str) -> None:
    form = train(name, codec)
    plain, head = form.as_stored(), form.as_stored(is_head=True)
    x = np.random.default_rng(0).standard_normal((5, form.in_features), np.float32)
    expected = matmul(plain, x)
    assert np.abs(matmul(head, x) - expected).max() <= 1e-5 * np.abs(expected).max()
    ids = np.arange(form.out_features)
    np.testing.assert_allclose(rows(head, ids), rows(plain, ids), atol=1e-5 * float(np.abs(expected).max()))


@pytest.mark.parametrize("name", SHAPES)
def test_what_is_merged_is_asked_for_once_and_is_small(name: str) -> None:
    form, asked = train(name), []

    def find(span: trains.Span, shape: trains.Shape, compute: trains.Compute) -> trains.Product:
        found = compute()
        asked.append(span)
        assert found.shape == shape
        assert 2 * found.size <= prod(form.shape)
        assert 1 < span.stop - span.start < len(form.in_modes)
        return found

    tensors = {key: array(tensor) for key, tensor in form.tensors().items()}
    _, spec = trains.merged(tensors, form.spec(), find)
    assert len(asked) == SHAPES[name][3]
    assert prod(spec.options["in_modes"]) == prod(form.in_modes)
    assert len(spec.options["in_modes"]) == len(form.in_modes) - sum(span.stop - span.start - 1 for span in asked)
