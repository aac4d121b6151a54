"""Methods that weigh errors by statistics, by direction or by what later columns can make up for."""

import dataclasses
import itertools

import pytest
import torch
from torch import Tensor

from compressor.codecs import codec_named
from compressor.formats import Dense, LowRank, Stacked
from compressor.methods import (
    METHODS,
    direction_ae,
    direction_svd,
    gptq,
    lpa,
    quantize,
    residual,
    rotated_svd,
    svd,
    whitened_svd,
)
from compressor.methods.base import Statistics
from compressor.progress import silent
from tests.cases import INEXACT_CASES, statistics
from tests.tolerances import EXACT

ROWS, WIDTH = 40, 24
GIVEN = statistics(ROWS, WIDTH)
PLAIN = Statistics(second_moment=torch.eye(WIDTH))
WHITENED = whitened_svd.Config(rank=5, damping=0.0, codec="fp32")


@pytest.fixture(scope="module")
def weight() -> Tensor:
    random = torch.Generator().manual_seed(3)
    return torch.randn(ROWS, WIDTH, generator=random) * torch.rand(ROWS, 1, generator=random).exp()


def weighted_error(change: Tensor, given: Statistics) -> float:
    """Return sum_v w_v delta_v M delta_v^T."""
    change = change.double()
    per_row = (change @ given.second_moment.double() * change).sum(1)
    return float(per_row.sum() if given.row_weights is None else (given.row_weights * per_row).sum())


def mean_cosine(form: LowRank, weight: Tensor) -> float:
    return float(torch.cosine_similarity(form.dense(), weight).mean())


@pytest.mark.parametrize("case", INEXACT_CASES)
def test_an_inexact_method_is_a_pure_function(case: str, weight: Tensor) -> None:
    compress, config = INEXACT_CASES[case]
    before = weight.clone()
    first, second = (compress(weight, config) for _ in range(2))
    assert first.shape == weight.shape
    assert torch.equal(weight, before)
    assert all(torch.equal(second.tensors()[name], tensor) for name, tensor in first.tensors().items())


def test_whitened_svd_leaves_the_smallest_weighted_singular_values(weight: Tensor) -> None:
    assert GIVEN.row_weights is not None
    root = torch.linalg.cholesky(GIVEN.second_moment.double())
    seen = GIVEN.row_weights.double().sqrt().unsqueeze(-1) * weight.double() @ root
    least = torch.linalg.svdvals(seen)[WHITENED.rank :].square().sum()  # Eckart and Young in the weighted metric
    change = whitened_svd.compress(weight, WHITENED, GIVEN).dense() - weight
    assert weighted_error(change, GIVEN) == pytest.approx(float(least), rel=EXACT)
    plain = svd.compress(weight, svd.Config(rank=WHITENED.rank, codec="fp32")).dense() - weight
    assert weighted_error(change, GIVEN) < weighted_error(plain, GIVEN)


def test_whitened_svd_is_plain_svd_where_nothing_is_weighted(weight: Tensor) -> None:
    plain = svd.compress(weight, svd.Config(rank=5, codec="fp32")).dense()
    torch.testing.assert_close(whitened_svd.compress(weight, WHITENED, PLAIN).dense(), plain, rtol=0, atol=EXACT)


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (7, 7)])
def test_whitened_svd_is_better_with_more_rank_and_exact_with_all(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    given = statistics(*shape)
    ranks = [1, 3, 5, min(shape)]
    forms = [whitened_svd.compress(weight, dataclasses.replace(WHITENED, rank=rank), given) for rank in ranks]
    errors = [weighted_error(form.dense() - weight, given) for form in forms]
    assert all(more < less for less, more in itertools.pairwise(errors))
    torch.testing.assert_close(forms[-1].dense(), weight, rtol=0, atol=10 * EXACT)


def test_whitened_svd_keeps_rows_of_no_weight_finite(weight: Tensor) -> None:
    nothing = Statistics(second_moment=GIVEN.second_moment, row_weights=(torch.arange(ROWS) > 0).float())
    assert whitened_svd.compress(weight, WHITENED, nothing).dense().isfinite().all()


def test_whitened_svd_damps_inputs_that_do_not_span_all_directions(weight: Tensor) -> None:
    flat = Statistics(second_moment=torch.ones(WIDTH, WIDTH))
    for damping in (0, 0.01):
        damped = dataclasses.replace(WHITENED, damping=damping)
        assert whitened_svd.compress(weight, damped, flat).dense().isfinite().all()


@pytest.mark.parametrize("name", ["whitened_svd", "rotated_svd", "gptq", "residual"])
def test_missing_statistics_are_asked_for(name: str, weight: Tensor) -> None:
    assert METHODS[name].calibrated
    with pytest.raises(ValueError, match=r"needs statistics.*--calibration-text.*sampled"):
        METHODS[name].compress(weight, METHODS[name].config(), None, silent)


@pytest.mark.parametrize("name", ["whitened_svd", "rotated_svd", "direction_svd", "lpa", "direction_ae", "residual"])
def test_an_illegal_rank_is_refused(name: str, weight: Tensor) -> None:
    with pytest.raises(ValueError, match="rank must be at least 1, not 0"):
        METHODS[name].config(rank=0)  # type: ignore[call-arg]
    config = METHODS[name].config(rank=25)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="rank must be between 1 and 24, not 25"):
        METHODS[name].compress(weight, config, GIVEN, silent)


@pytest.mark.parametrize("codec", ["int2-row", "int3-row", "int4-row"])
def test_rotated_factors_survive_few_bits_better_than_whitened_ones(codec: str) -> None:
    # Components of very different sizes, as those of a trained table are.
    weight = torch.randn(300, 32, generator=torch.Generator().manual_seed(5)) * torch.logspace(0, -2, 32)
    given = statistics(*weight.shape)
    rotated = rotated_svd.compress(weight, rotated_svd.Config(rank=24, codec=codec, right_codec=codec), given)
    whitened = whitened_svd.compress(weight, whitened_svd.Config(rank=24, codec=codec), given)
    assert rotated.num_bytes == whitened.num_bytes
    assert weighted_error(rotated.dense() - weight, given) < 0.7 * weighted_error(whitened.dense() - weight, given)


def test_a_rotated_svd_in_many_bits_is_nearly_the_whitened_one(weight: Tensor) -> None:
    config = rotated_svd.Config(rank=5, codec="int8", right_codec="int8", damping=1e-9)
    error = weighted_error(rotated_svd.compress(weight, config, GIVEN).dense() - weight, GIVEN)
    least = weighted_error(whitened_svd.compress(weight, WHITENED, GIVEN).dense() - weight, GIVEN)
    assert least < error < 1.02 * least


def test_direction_svd_keeps_directions_better_than_svd(weight: Tensor) -> None:
    for rank in (2, 5, 10):
        directions = direction_svd.compress(weight, direction_svd.Config(rank=rank, codec="fp32"))
        plain = svd.compress(weight, svd.Config(rank=rank, codec="fp32"))
        assert mean_cosine(directions, weight) > mean_cosine(plain, weight)


def test_direction_svd_scales_every_row_as_well_as_can_be(weight: Tensor) -> None:
    form = direction_svd.compress(weight, direction_svd.Config(rank=5, codec="fp32"))
    # At the best scale the error is orthogonal to the row itself.
    along = ((form.dense() - weight) * form.dense()).sum(1) / weight.square().sum(1)
    torch.testing.assert_close(along, torch.zeros(ROWS), rtol=0, atol=EXACT)


def test_direction_svd_takes_statistics_and_rows_of_zeros(weight: Tensor) -> None:
    weight = weight.clone()
    weight[3] = 0
    form = direction_svd.compress(weight, direction_svd.Config(rank=WIDTH, codec="fp32"), GIVEN)
    torch.testing.assert_close(form.dense(), weight, rtol=0, atol=10 * EXACT)
    poor = direction_svd.Config(rank=5, codec="fp32")
    change, plain = (direction_svd.compress(weight, poor, s).dense() - weight for s in (GIVEN, None))
    assert weighted_error(change, GIVEN) < weighted_error(plain, GIVEN)


def test_the_scales_of_low_bit_factors_keep_16_bits(weight: Tensor) -> None:
    codecs = direction_svd.compress(weight, direction_svd.Config(rank=5, codec="int4-g8")).spec().codecs
    assert codecs == {"left": "int4-g8", "right": "int4-g8", "row_scale": "fp16"}


@pytest.mark.parametrize(("ratio", "rank"), [(2.5, 302), (5, 151), (10, 75)])
def test_the_auto_encoder_has_the_published_widths(ratio: float, rank: int) -> None:
    assert direction_ae.svd_rank(50257, 768, ratio) == rank


def test_the_auto_encoder_stores_what_its_ratio_says(weight: Tensor) -> None:
    form = direction_ae.compress(weight, direction_ae.Config(ratio=3, epochs=1, codec="fp32"))
    assert form.left.shape == (ROWS, 5)
    assert set(form.coded()) == {"left", "right", "column_offset"}


def test_the_auto_encoder_anneals_as_published() -> None:
    exponents = direction_ae.exponents(30)
    assert exponents[0] == 1
    assert exponents[19:] == pytest.approx([0.1] * 11)
    assert len(exponents) == 30
    assert all(less < more for more, less in itertools.pairwise(exponents[:20]))


def test_the_auto_encoders_loss_is_the_published_one() -> None:
    rows = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    decoded = torch.tensor([[3.0, 4.0], [0.0, 2.0]])  # cosines 1 and 0; |delta| 0, 0, 1, 2
    expected = 0.9975 / 5 * 0.5 + 0.0025 * (0 + 0 + 1 + 2**0.5) / 4
    # 2 |delta| are zero: each leaves (1e-10)^0.5 = 1e-5.
    loss = direction_ae.direction_loss(rows, decoded, exponent=0.5)
    assert float(loss) == pytest.approx(expected + 0.0025 * 2e-5 / 4, rel=EXACT)


def test_the_auto_encoder_learns_and_depends_on_its_seed() -> None:
    random = torch.Generator().manual_seed(2)
    rows = torch.randn(1000, 6, generator=random) @ torch.randn(6, 16, generator=random)
    config = direction_ae.Config(rank=6, epochs=1, codec="fp32")
    forms = [direction_ae.compress(rows, dataclasses.replace(config, epochs=epochs)) for epochs in (1, 6)]
    losses = [direction_ae.direction_loss(rows, form.dense(), exponent=1) for form in forms]
    assert losses[1] < losses[0]
    other = direction_ae.compress(rows, dataclasses.replace(config, seed=1))
    assert not torch.equal(other.dense(), forms[0].dense())


@pytest.mark.parametrize("codec", ["int8", "int4", "int3-g8", "int2-g8-zp", "int2", "int3-row"])
@pytest.mark.parametrize("act_order", [False, True])
def test_gptq_disturbs_the_products_less_than_rounding_to_nearest(codec: str, act_order: bool, weight: Tensor) -> None:
    compress = gptq.compress(weight, gptq.Config(codec=codec, act_order=act_order), GIVEN)
    nearest = quantize.compress(weight, quantize.Config(codec=codec))
    assert isinstance(compress, Dense)
    assert compress.spec() == nearest.spec()
    inputs = Statistics(second_moment=GIVEN.second_moment)
    error = weighted_error(compress.dense() - weight, inputs)
    assert error < weighted_error(nearest.dense() - weight, inputs)


def test_gptq_is_rounding_to_nearest_for_inputs_without_correlation(weight: Tensor) -> None:
    rounded = gptq.compress(weight, gptq.Config(codec="int4-g8"), PLAIN)
    assert torch.equal(rounded.dense(), quantize.compress(weight, quantize.Config(codec="int4-g8")).dense())


def test_gptq_prefers_the_differences_of_inputs_where_there_are_any(weight: Tensor) -> None:
    both = Statistics(second_moment=PLAIN.second_moment, difference_moment=GIVEN.second_moment)
    config = gptq.Config(codec="int4-g8")
    preferred, alone = (gptq.compress(weight, config, given).dense() for given in (both, GIVEN))
    assert torch.equal(preferred, alone)


def test_gptq_in_blocks_is_gptq_column_by_column() -> None:
    weight = torch.randn(5, 300, generator=torch.Generator().manual_seed(5))
    given = Statistics(second_moment=statistics(5, 300).second_moment)
    rounded = gptq.compress(weight, gptq.Config(codec="int8"), given).dense()
    step = codec_named("int8").encode(weight)["scale"].double()
    feedback = gptq.feedback_of(given.second_moment, 0.01).double()
    rest = weight.double()
    for k in range(300):
        column = (rest[:, k : k + 1] / step).round().clamp(-127, 127) * step
        rest = rest - (rest[:, k : k + 1] - column) / feedback[k, k] * feedback[k].where(torch.arange(300) > k, 0)
        rest[:, k : k + 1] = column
    # fp32 sums in another order may tip a value over to the next level, and then those after it.
    assert ((rest - rounded).abs() < step / 2).float().mean() > 0.95


CORRECTED = residual.Config(rank=3, codec="int3-g8", factor_codec="fp32", rounds=1)


def test_a_correction_leaves_the_smallest_singular_values_of_the_bases_error(weight: Tensor) -> None:
    assert GIVEN.row_weights is not None
    form = residual.compress(weight, dataclasses.replace(CORRECTED, damping=1e-9), GIVEN)
    root = torch.linalg.cholesky(GIVEN.second_moment.double())
    seen = GIVEN.row_weights.double().sqrt().unsqueeze(-1) * (weight - form.base.dense()).double() @ root
    least = torch.linalg.svdvals(seen)[CORRECTED.rank :].square().sum()
    assert weighted_error(form.dense() - weight, GIVEN) == pytest.approx(float(least), rel=1e-3)


def test_a_correction_is_better_with_more_rank_and_never_worse_for_more_rounds(weight: Tensor) -> None:
    def error(**changes: object) -> float:
        form = residual.compress(weight, dataclasses.replace(CORRECTED, **changes), GIVEN)  # type: ignore[arg-type]
        return weighted_error(form.dense() - weight, GIVEN)

    by_rank = [error(rank=rank) for rank in (1, 3, 9, WIDTH)]
    assert all(more < less for less, more in itertools.pairwise(by_rank))
    by_rounds = [error(rounds=rounds, damping=1e-9) for rounds in (1, 2, 4)]
    assert all(more <= less * (1 + EXACT) for less, more in itertools.pairwise(by_rounds))
    base = gptq.compress(weight, gptq.Config(codec=CORRECTED.codec), GIVEN)
    assert by_rank[0] < weighted_error(base.dense() - weight, GIVEN)


def test_gptq_rounds_to_few_bits_only() -> None:
    with pytest.raises(ValueError, match=r"codec must be of integers, .* not 'fp16'"):
        gptq.Config(codec="fp16")


def test_lpa_gives_q_k_and_v_factors_of_their_own() -> None:
    fused = torch.randn(3 * WIDTH, WIDTH, generator=torch.Generator().manual_seed(6))
    form = lpa.compress(fused, lpa.Config(rank=5, codec="fp32"), GIVEN)
    assert isinstance(form, Stacked)
    assert [(block.kind, block.shape) for block in form.blocks()] == [("low_rank", (WIDTH, WIDTH))] * 3
    alone = lpa.compress(fused[:WIDTH], lpa.Config(rank=5, codec="fp32"), GIVEN)
    torch.testing.assert_close(form.dense()[:WIDTH], alone.dense(), rtol=0, atol=EXACT)
    inputs = Statistics(second_moment=GIVEN.second_moment)
    plain = lpa.compress(fused, lpa.Config(rank=5, codec="fp32")).dense() - fused
    assert weighted_error(form.dense() - fused, inputs) < weighted_error(plain, inputs)


def test_lpa_stores_the_published_number_of_values() -> None:
    d, r = 64, 16  # 8 d r in place of 4 d^2
    fused, output = torch.randn(3 * d, d), torch.randn(d, d)
    config = lpa.Config(rank=r, codec="fp32")
    assert sum(lpa.compress(w, config).num_bytes for w in (fused, output)) == 4 * 8 * d * r
