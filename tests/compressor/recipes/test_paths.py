"""The measured choice of how a matrix is multiplied."""

import pytest
import torch

from compressor.formats import Dense, LowRank, resident_bytes
from compressor.gpt2 import GPT2
from compressor.recipes.paths import costs, measured
from tests.cases import FORMAT_CASES
from tests.conftest import TINY, tiny_model


def _resident(model: GPT2) -> int:
    return sum(resident_bytes(form) for form in model.matrices().values())


def test_no_path_occupies_more_than_the_dense_matrix_and_the_smallest_comes_first() -> None:
    for make in FORMAT_CASES.values():
        form = make()
        found = costs(form)
        sizes = [cost.resident for cost in found]
        assert sizes == sorted(sizes)
        assert len({cost.path for cost in found}) == len(found) >= 1
        assert all(cost.seconds > 0 for cost in found)
        dense = 4 * form.out_features * form.in_features
        assert max(sizes) <= dense


def test_only_the_paths_change_and_a_limit_is_kept() -> None:
    model = tiny_model()
    model = model.with_matrices({"wpe": LowRank.of(torch.randn(64, 4), torch.randn(4, 32), "fp16")})
    model = model.with_matrices({"h.0.mlp.c_fc": Dense.of(torch.randn(128, 32), "int3")})
    stored = {name: form.tensors() for name, form in model.matrices().items()}
    smallest = _resident(GPT2(TINY, {n: f.with_path("stored") for n, f in model.matrices().items()}, model.vectors()))
    for limit in (None, smallest + 3000, smallest):
        chosen = measured(model, limit)
        for name, form in chosen.matrices().items():
            assert form.tensors().keys() == stored[name].keys()
            assert all(torch.equal(form.tensors()[key], tensor) for key, tensor in stored[name].items())
        if limit is not None:
            assert _resident(chosen) <= limit
    with pytest.raises(ValueError, match=rf"memory_limit must be between {smallest} and \d+, not {smallest - 1}"):
        measured(model, smallest - 1)


@torch.inference_mode()
def test_a_path_given_at_load_overrides_the_artefacts() -> None:
    model = tiny_model()
    model = model.with_matrices({"h.0.mlp.c_fc": LowRank.of(torch.randn(128, 4), torch.randn(4, 32), "int8")})
    for path, kind, codec in (("stored", LowRank, "int8"), ("factors", LowRank, "fp32"), ("dense", Dense, "fp32")):
        form = model.prepared(path).matrices()["h.0.mlp.c_fc"]  # type: ignore[arg-type]
        assert isinstance(form, kind)
        assert {coded.codec.name for coded in form.coded().values()} == {codec}
