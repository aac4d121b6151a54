"""The TT-matrix's published counts, its permutation, and formats inside formats."""

from pathlib import Path

import pytest
import torch

from compressor import stored
from compressor.artifact.shapes import balanced_modes, left_capped_ranks, tt_ranks, ttm_modes
from compressor.formats import Dense, Format, LowRank, Residual, Stacked, TTMatrix, from_tensors
from compressor.methods.base import Statistics
from compressor.methods.ttm import Config, compress, locality_order, separable_scales
from tests.cases import FORMAT_CASES
from tests.conftest import tiny_model, write_artifact
from tests.tolerances import EXACT, ROUNDING


def _published(in_features: int, out_features: int, rank: int) -> TTMatrix:
    in_modes, out_modes = ttm_modes(in_features, out_features, rank)
    ranks = left_capped_ranks([i * o for i, o in zip(in_modes, out_modes, strict=True)], rank)
    sizes = zip(ranks[:-1], in_modes, out_modes, ranks[1:], strict=True)
    random = torch.Generator().manual_seed(rank)
    cores = [torch.randn(size, generator=random) / size[0] ** 0.5 for size in sizes]
    return TTMatrix.of(cores, (out_features, in_features), "fp32")


def _values(form: TTMatrix) -> int:
    return sum(core.numel() for core in form.cores())


@pytest.mark.parametrize(
    ("in_features", "rank", "in_modes", "out_modes"),
    [
        (768, 16, [4, 4, 4, 4, 3], [4, 4, 4, 4, 12]),
        (768, 32, [8, 8, 12, 1], [8, 8, 8, 6]),
        (768, 64, [8, 8, 12, 1], [8, 8, 8, 6]),
        (768, 72, [16, 16, 3], [16, 16, 12]),
        (768, 80, [16, 16, 3], [16, 16, 12]),
        (1024, 72, [16, 16, 4], [16, 16, 16]),
    ],
)
def test_the_published_modes(in_features: int, rank: int, in_modes: list[int], out_modes: list[int]) -> None:
    assert ttm_modes(in_features, 4 * in_features, rank) == (in_modes, out_modes)


@pytest.mark.parametrize(
    ("in_features", "rank", "values", "after_rounding"),
    [
        (768, 16, 13_120, 13_120),
        (768, 32, 166_080, 86_052),
        (768, 64, 659_840, 303_140),
        (768, 72, 1_348_128, 683_280),
        (768, 80, 1_661_760, 759_056),
        (1024, 72, 1_350_144, 1_202_176),
    ],
)
def test_the_published_number_of_values_and_what_rounding_leaves(
    in_features: int, rank: int, values: int, after_rounding: int
) -> None:
    form = _published(in_features, 4 * in_features, rank)
    assert _values(form) == values
    rounded = form.rounded()
    assert _values(rounded) == after_rounding
    modes = [i * o for i, o in zip(form.in_modes, form.out_modes, strict=True)]
    assert list(rounded.ranks) == tt_ranks(modes, rank)
    if rank == 64:
        assert (rounded.dense() - form.dense()).norm() <= ROUNDING * form.dense().norm()


@pytest.mark.parametrize(
    ("n", "order", "modes"),
    [
        (50257, 4, [14, 15, 15, 16]),
        (768, 3, [8, 8, 12]),
        (16384, 3, [16, 32, 32]),
        (256, 3, [4, 8, 8]),
        (3072, 3, [12, 16, 16]),
        (7, 2, [2, 4]),
        (1, 3, [1, 1, 1]),
    ],
)
def test_balanced_modes_waste_little(n: int, order: int, modes: list[int]) -> None:
    assert balanced_modes(n, order) == modes


def test_rows_outside_the_matrix_are_refused_and_never_padding() -> None:
    form = FORMAT_CASES["tt_matrix-padded"]()
    for bad in (33, 35, -1):
        with pytest.raises(IndexError, match=r"ids must lie in \[0, 33\)"):
            form.rows(torch.tensor([0, bad]))


@pytest.mark.parametrize(
    "case", ["tt_matrix-padded", "tt_matrix-permuted", "tt_matrix-many-cores", "residual-of-stacked"]
)
def test_gradients_are_those_of_the_dense_matrix(case: str) -> None:
    form = FORMAT_CASES[case]()
    ids = torch.tensor([3, 0, 3, form.out_features - 1])
    x = torch.randn(5, form.in_features, generator=torch.Generator().manual_seed(5))
    short, long = form.trainable(), form.trainable()
    (short.rows(ids).square().sum() + short.matmul(x).square().sum()).backward()
    dense = long.dense()
    (dense[ids].square().sum() + (x @ dense.T).square().sum()).backward()
    for mine, theirs in zip(short.parameters(), long.parameters(), strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert (mine.grad - theirs.grad).norm() <= EXACT * theirs.grad.norm()


def test_the_permutation_is_stored_in_two_bytes_a_row_and_counted() -> None:
    weight = torch.randn(40, 24, generator=torch.Generator().manual_seed(6))
    with_, without = (compress(weight, Config(rank=4, permute=permute)) for permute in (True, False))
    assert with_.tensors()["permutation.values"].dtype == torch.uint16
    assert with_.num_bytes == without.num_bytes + 2 * 40
    assert with_.trainable().quantized().num_bytes == with_.num_bytes


def test_a_permutation_that_is_none_is_refused() -> None:
    form = FORMAT_CASES["tt_matrix-permuted"]()
    bad = form.tensors() | {"permutation.values": torch.zeros(33, dtype=torch.uint16)}
    with pytest.raises(ValueError, match="permutation must be a permutation"):
        from_tensors(bad, form.spec())
    with pytest.raises(ValueError, match="index tensors"):
        from_tensors({k: t for k, t in bad.items() if k != "permutation.values"}, form.spec())


def test_similar_rows_become_neighbours() -> None:
    random = torch.Generator().manual_seed(7)
    centres = torch.randn(8, 16, generator=random)
    kinds = torch.randperm(64, generator=random) % 8
    rows = centres[kinds] + 0.01 * torch.randn(64, 16, generator=random)
    places = locality_order(rows, [8, 8])
    assert places.sort().values.tolist() == list(range(64))
    in_order = kinds[places.argsort()].reshape(8, 8)
    assert (in_order == in_order[:, :1]).all()
    scattered, ordered = (compress(rows, Config(rank=4, order=2, permute=p)).dense() for p in (False, True))
    assert (ordered - rows).norm() < 0.5 * (scattered - rows).norm()


def test_statistics_lower_the_error_that_they_weigh() -> None:
    random = torch.Generator().manual_seed(8)
    weight = torch.randn(40, 24, generator=random)
    columns = torch.linspace(0, 4, 24).exp()
    rows = torch.linspace(4, 0, 40).exp()
    statistics = Statistics(second_moment=columns.diag(), row_weights=rows / rows.mean())

    def loss(form: Format) -> torch.Tensor:
        return ((form.dense() - weight).square() * rows[:, None] * columns).sum()

    config = Config(rank=5, codec="fp32", permute=False)
    assert loss(compress(weight, config, statistics)) < 0.7 * loss(compress(weight, config))
    exact = compress(weight, Config(rank=20, codec="fp32"), statistics)
    torch.testing.assert_close(exact.dense(), weight, rtol=1e-4, atol=1e-4)


def test_scales_that_are_a_product_are_found_exactly() -> None:
    left, right = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 0.5])
    scales = separable_scales(torch.outer(left, right).flatten().square(), [3, 2])
    found = torch.outer(*scales)
    torch.testing.assert_close(found / found[0, 0], torch.outer(left, right).double(), rtol=EXACT, atol=EXACT)
    assert all((vector > 0).all() for vector in separable_scales(torch.zeros(5), [3, 2]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank must be at least 1, not 0"),
        ({"modes": "prime"}, "modes must be one of balanced, published, not 'prime'"),
        ({"order": 0}, "order must be between 1 and 12, not 0"),
    ],
)
def test_illegal_options_of_ttm_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config(**options)  # type: ignore[arg-type]


def test_stacked_refuses_blocks_that_do_not_fit() -> None:
    block = Dense.of(torch.ones(2, 3), "fp32")
    with pytest.raises(ValueError, match="at least 1 block"):
        Stacked.of([])
    with pytest.raises(ValueError, match=r"blocks must be 3 wide, not \[3, 4\]"):
        Stacked.of([block, Dense.of(torch.ones(2, 4), "fp32")])
    with pytest.raises(ValueError, match="blocks must have 5 rows together"):
        Stacked((5, 3), {}, {}, inner={"0": block})
    with pytest.raises(ValueError, match="blocks must be called"):
        Stacked((2, 3), {}, {}, inner={"1": block})
    with pytest.raises(ValueError, match="dense has no inner formats"):
        Dense((2, 3), block.coded(), {}, inner={"0": block})


def test_one_block_may_be_stacked_twice() -> None:
    block = Dense.of(torch.arange(6.0).reshape(2, 3), "fp32")
    form = Stacked.of([block, block])
    assert torch.equal(form.dense(), block.dense().repeat(2, 1))
    assert form.num_bytes == sum(tensor.nbytes for tensor in form.tensors().values()) == 2 * block.num_bytes


def test_residual_refuses_a_correction_of_another_shape() -> None:
    base = Dense.of(torch.ones(2, 3), "fp32")
    with pytest.raises(ValueError, match=r"correction must have shape \[2, 3\], not \[3, 2\]"):
        Residual.of(base, Dense.of(torch.ones(3, 2), "fp32"))
    with pytest.raises(ValueError, match="made of base and correction"):
        Residual((2, 3), {}, {}, inner={"base": base})


def test_a_model_names_only_the_outermost_formats_and_its_artefact_keeps_the_rest(tmp_path: Path) -> None:
    model = tiny_model()
    whole = model.matrices()["wte"]
    halves = whole.dense().split(whole.out_features // 2)
    train = compress(halves[1], Config(rank=2, order=2, codec="int8"))
    stacked = Stacked.of([Dense.of(halves[0], "int4"), train])
    fc = model.matrices()["h.0.mlp.c_fc"].dense()
    residual = Residual.of(Dense.of(fc, "int4"), LowRank.of(torch.ones(128, 2), torch.ones(2, 32), "fp16"))
    nested = model.with_matrices({"wte": stacked, "h.0.mlp.c_fc": residual})
    assert nested.matrices().keys() == model.matrices().keys()
    assert nested.matrices()["wte"] is stacked
    trained = nested.trainable()
    assert all(parameter.requires_grad for parameter in trained.matrices()["wte"].parameters())
    assert trained.quantized().matrices()["wte"].num_bytes == stacked.num_bytes
    again = stored.read(write_artifact(tmp_path / "nested", nested)).matrices
    assert {name: form.spec() for name, form in again.items()} == {n: f.spec() for n, f in nested.matrices().items()}
    for name, tensor in stacked.tensors().items():
        assert torch.equal(again["wte"].tensors()[name], tensor)
