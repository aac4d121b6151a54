"""What every method promises, and the counts that its paper publishes."""

import itertools

import pytest
import torch

from compressor.artifact.shapes import max_tt_rank
from compressor.formats import TokenMPS
from compressor.methods import METHODS, Config
from compressor.methods.svd import truncated_svd
from compressor.methods.tensorgpt import Config as TensorGPT
from compressor.methods.tensorgpt import compress as tensorgpt
from compressor.progress import silent
from tests.cases import INEXACT_CASES, METHOD_CASES, METHOD_SHAPES
from tests.tolerances import EXACT


@pytest.fixture(scope="module")
def weight() -> torch.Tensor:
    return _random(40, 24)


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def test_every_method_that_finds_a_format_has_a_case() -> None:
    compressing = {method.compress.__module__ for method in METHODS.values() if method.target != "none"}
    cases = [*METHOD_CASES.values(), *INEXACT_CASES.values()]
    assert {case[0].__module__ for case in cases} == compressing


@pytest.mark.parametrize("case", METHOD_CASES)
def test_more_rank_is_never_worse_and_full_rank_is_exact(case: str) -> None:
    compress, config, ranks = METHOD_CASES[case]
    weight = _random(*METHOD_SHAPES.get(case, (40, 24)))
    errors = [(compress(weight, config(rank)).dense() - weight).norm() / weight.norm() for rank in ranks]
    assert all(more <= less + EXACT for less, more in itertools.pairwise(errors))
    assert errors[-1] <= EXACT


@pytest.mark.parametrize("case", METHOD_CASES)
def test_a_method_is_a_pure_function(case: str) -> None:
    compress, config, ranks = METHOD_CASES[case]
    weight = _random(*METHOD_SHAPES.get(case, (40, 24)))
    before = weight.clone()
    first, second = (compress(weight, config(ranks[0])) for _ in range(2))
    assert torch.equal(weight, before)
    assert all(torch.equal(second.tensors()[name], tensor) for name, tensor in first.tensors().items())


@pytest.mark.parametrize(
    ("rank", "padded", "values", "ratio"),
    [
        (1, True, 20, 38.40),
        (2, True, 72, 10.67),
        (3, True, 140, 5.49),
        (4, True, 232, 3.31),
        (5, True, 320, 2.40),
        (6, True, 424, 1.81),
        (8, True, 680, 1.13),
        (1, False, 19, 40.42),
        (2, False, 66, 11.64),
        (3, False, 133, 5.77),
        (4, False, 213, 3.61),
        (5, False, 299, 2.57),
        (6, False, 401, 1.92),
        (8, False, 609, 1.26),
    ],
)
def test_tensorgpt_stores_the_published_number_of_values(rank: int, padded: bool, values: int, ratio: float) -> None:
    form = tensorgpt(torch.randn(3, 768), TensorGPT(rank=rank, padded=padded))
    stored = form.cores.shape[1]
    assert stored == values
    assert round(768 / stored, 2) == ratio


def test_tensorgpt_factorises_every_token_by_itself(weight: torch.Tensor) -> None:
    together = tensorgpt(weight, TensorGPT(rank=2, codec="fp32"))
    alone = tensorgpt(weight[5:6], TensorGPT(rank=2, codec="fp32"))
    torch.testing.assert_close(alone.dense()[0], together.dense()[5], rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("width", [1, 2, 3, 7, 257])
def test_tensorgpt_takes_any_width(width: int) -> None:
    weight = torch.randn(4, width)
    for padded in (True, False):
        form = tensorgpt(weight, TensorGPT(rank=1000, padded=padded, codec="fp32"))
        assert isinstance(form, TokenMPS)
        assert max(form.options["ranks"]) == max_tt_rank(form.options["modes"])
        torch.testing.assert_close(form.dense(), weight, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (5, 5)])
def test_truncated_svd_discards_only_the_smallest_singular_values(shape: tuple[int, int]) -> None:
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(4))
    left, right = truncated_svd(matrix, 3)
    discarded = torch.linalg.svdvals(matrix)[3:]
    torch.testing.assert_close((left @ right - matrix).norm(), discarded.norm(), rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.config is not Config])
def test_an_illegal_codec_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="codec must be one of"):
        METHODS[name].config(codec="int1")  # type: ignore[call-arg]


@pytest.mark.parametrize("name", ["tensorgpt", "svd"])
def test_an_illegal_rank_is_refused(name: str, weight: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="rank must be at least 1, not 0"):
        METHODS[name].config(rank=0)  # type: ignore[call-arg]
    if name == "svd":
        config = METHODS[name].config(rank=25)  # type: ignore[call-arg]
        with pytest.raises(ValueError, match="rank must be between 1 and 24, not 25"):
            METHODS[name].compress(weight, config, None, silent)
