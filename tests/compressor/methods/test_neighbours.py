"""Methods beside the papers' own: queries and keys cut together, and low rank with the worst entries kept."""

import dataclasses
import itertools

import pytest
import torch
from torch import Tensor

from compressor import huggingface
from compressor.formats import Dense, LowRank, Residual, Stacked
from compressor.huggingface import Checkpoint
from compressor.methods import joint_qk, sparse_low_rank, whitened_svd
from compressor.methods.base import Statistics
from compressor.methods.whitened_svd import root_of, whitened_factors
from compressor.recipes.context import Context
from compressor.recipes.plans import Recipe
from tests.cases import statistics
from tests.conftest import tiny_model
from tests.tolerances import EXACT

WIDTH, HEADS = 24, 2
SIZE = WIDTH // HEADS
GIVEN = dataclasses.replace(statistics(3 * WIDTH, WIDTH), heads=HEADS)
CUT = joint_qk.Config(rank=4, damping=0.0, codec="fp32")
KEPT = sparse_low_rank.Config(rank=3, kept=4, codec="fp32", kept_codec="fp32")


@pytest.fixture(scope="module")
def fused() -> Tensor:
    return torch.randn(3 * WIDTH, WIDTH, generator=torch.Generator().manual_seed(3))


def products(matrix: Tensor, head: int) -> Tensor:
    """Return R^T Wq^T Wk R of a head [D, D], R being the root of the inputs' second moment."""
    q, k, _ = matrix.double().chunk(3)
    root, rows = root_of(GIVEN.second_moment, 0), slice(head * SIZE, (head + 1) * SIZE)
    return root.T @ q[rows].T @ k[rows] @ root


def weighted_error(change: Tensor, given: Statistics) -> float:
    """Return sum_v w_v delta_v M delta_v^T."""
    assert given.row_weights is not None
    change = change.double()
    return float((given.row_weights * (change @ given.second_moment.double() * change).sum(1)).sum())


def test_joint_qk_leaves_the_smallest_singular_values_of_every_heads_products(fused: Tensor) -> None:
    form = joint_qk.compress(fused, CUT, GIVEN).dense()
    for head in range(HEADS):
        whole = products(fused, head)
        least = torch.linalg.svdvals(whole)[CUT.rank :].norm()  # Eckart and Young in the whitened metric
        torch.testing.assert_close((products(form, head) - whole).norm(), least, rtol=EXACT, atol=0)


@pytest.mark.parametrize("rank", [1, 2, 4, 7])
def test_joint_qk_is_no_worse_than_cutting_queries_and_keys_apart(rank: int, fused: Tensor) -> None:
    form = joint_qk.compress(fused, dataclasses.replace(CUT, rank=rank), GIVEN).dense()
    root = root_of(GIVEN.second_moment, 0)
    apart = [left @ right for head in fused.split(SIZE) for left, right in [whitened_factors(head, rank, root, None)]]
    for head in range(HEADS):
        whole = products(fused, head)
        assert (products(form, head) - whole).norm() < (products(torch.cat(apart), head) - whole).norm()


def test_joint_qk_projects_every_head_obliquely(fused: Tensor) -> None:
    form = joint_qk.compress(fused, CUT, GIVEN).dense().double()
    for rows in (slice(0, SIZE), slice(SIZE, WIDTH)):
        (q, k), (q_cut, k_cut) = ([part[rows] for part in matrix.chunk(3)[:2]] for matrix in (fused.double(), form))
        p = k_cut @ torch.linalg.pinv(k)  # k_cut = P k
        torch.testing.assert_close(p @ p, p, rtol=0, atol=10 * EXACT)
        torch.testing.assert_close(p.T @ q, q_cut, rtol=0, atol=10 * EXACT)
        assert torch.linalg.matrix_rank(p, rtol=1e-4) == CUT.rank


def test_joint_qk_cut_at_the_rank_of_the_products_keeps_them(fused: Tensor) -> None:
    narrow = fused.clone()
    narrow[WIDTH : 2 * WIDTH, 3:] = 0  # keys that see 3 inputs
    form = joint_qk.compress(narrow, CUT, GIVEN).dense()
    assert form.isfinite().all()
    for head in range(HEADS):
        torch.testing.assert_close(products(form, head), products(narrow, head), rtol=0, atol=10 * EXACT)


def test_joint_qk_keeps_v_and_stores_a_pair_of_factors_per_head(fused: Tensor) -> None:
    form = joint_qk.compress(fused, CUT, GIVEN)
    assert isinstance(form, Stacked)
    shapes = [(block.kind, block.shape) for block in form.blocks()]
    assert shapes == [("low_rank", (SIZE, WIDTH))] * 2 * HEADS + [("dense", (WIDTH, WIDTH))]
    assert torch.equal(form.dense()[2 * WIDTH :], fused[2 * WIDTH :])
    assert form.num_bytes == 4 * (2 * HEADS * CUT.rank * (SIZE + WIDTH) + WIDTH**2)


@pytest.mark.parametrize("rank", [8, SIZE])
def test_joint_qk_cuts_nothing_where_factors_would_be_no_smaller(rank: int, fused: Tensor) -> None:
    form = joint_qk.compress(fused, dataclasses.replace(CUT, rank=rank), GIVEN)
    assert isinstance(form, Dense)
    assert torch.equal(form.dense(), fused)


def test_joint_qk_refuses_what_does_not_fit(fused: Tensor) -> None:
    with pytest.raises(ValueError, match=r"target must be qkv for joint_qk: .* \[3 D, D\], not \[24, 24\]"):
        joint_qk.compress(fused[:WIDTH], CUT, GIVEN)
    with pytest.raises(ValueError, match="rank must be between 1 and 12, not 13"):
        joint_qk.compress(fused, dataclasses.replace(CUT, rank=13), GIVEN)
    with pytest.raises(ValueError, match="heads must be given"):
        joint_qk.compress(fused, CUT)
    with pytest.raises(ValueError, match="heads must be 2 as in the model, not 4"):
        joint_qk.compress(fused, dataclasses.replace(CUT, heads=4), GIVEN)
    with pytest.raises(ValueError, match="heads must divide D = 24, not be 5"):
        joint_qk.compress(fused, dataclasses.replace(CUT, heads=5))
    with pytest.raises(ValueError, match="heads must be at least 1, not 0"):
        joint_qk.Config(heads=0)


def test_joint_qk_is_used_for_the_fused_matrices_only_and_knows_the_models_heads() -> None:
    embedded = huggingface.load(huggingface.EMBEDDED)
    checkpoint = Checkpoint(tiny_model(), embedded.tokenizer_json, embedded.source)
    ids = torch.randint(16384, (2, 64), generator=torch.Generator().manual_seed(1))
    made = (
        Recipe(method="joint_qk", options={"rank": 4}).compressed(Context(checkpoint=checkpoint, given=ids)).matrices()
    )
    cut = {name: form for name, form in made.items() if isinstance(form, Stacked)}
    assert cut.keys() == {name for name in made if name.endswith("c_attn")}
    assert all(len(form.blocks()) == 2 * checkpoint.model.config.n_head + 1 for form in cut.values())
    with pytest.raises(ValueError, match="target must be qkv"):
        Recipe(method="joint_qk", options={"rank": 4}, target="attn").compressed(
            Context(checkpoint=checkpoint, given=ids)
        )


@pytest.fixture(scope="module")
def weight() -> Tensor:
    """Low rank, noise, and a few entries that are far too large."""
    random = torch.Generator().manual_seed(5)
    smooth = torch.randn(40, 3, generator=random) @ torch.randn(3, WIDTH, generator=random)
    noise = 0.01 * torch.randn(40, WIDTH, generator=random)
    spikes = torch.randn(40, WIDTH, generator=random).sign() * (torch.rand(40, WIDTH, generator=random) < 0.05)
    return smooth + noise + 8 * spikes


def test_sparse_low_rank_keeps_exactly_the_entries_that_cost_most(weight: Tensor) -> None:
    given = statistics(40, WIDTH)
    form = sparse_low_rank.compress(weight, KEPT, given)
    assert isinstance(form, Residual)
    kept = form.correction.dense() != 0
    assert (kept.sum(1) == KEPT.kept).all()
    torch.testing.assert_close(form.dense()[kept], weight[kept], rtol=EXACT, atol=EXACT)
    damped = given.second_moment.diagonal() + KEPT.damping * given.second_moment.diagonal().mean()
    costs = (weight - form.base.dense()).square() * damped
    assert (torch.where(kept, costs, torch.inf).amin(1) >= torch.where(kept, 0, costs).amax(1)).all()


def test_sparse_low_rank_has_less_error_with_more_entries_and_more_rounds(weight: Tensor) -> None:
    given = statistics(40, WIDTH)

    def errors(configs: list[sparse_low_rank.Config]) -> list[float]:
        return [
            weighted_error(sparse_low_rank.compress(weight, config, given).dense() - weight, given)
            for config in configs
        ]

    by_kept = errors([dataclasses.replace(KEPT, kept=kept) for kept in (1, 2, 4, 8, 16, WIDTH)])
    assert all(more < less for less, more in itertools.pairwise(by_kept))
    assert by_kept[-1] <= EXACT * weighted_error(weight, given)
    by_rounds = errors([dataclasses.replace(KEPT, rounds=rounds) for rounds in (1, 2, 4, 8)])
    assert all(more < less for less, more in itertools.pairwise(by_rounds))


def test_sparse_low_rank_finds_spikes_that_low_rank_of_the_same_bytes_cannot(weight: Tensor) -> None:
    given = statistics(40, WIDTH)
    form = sparse_low_rank.compress(weight, KEPT, given)
    rank = form.num_bytes // (4 * sum(weight.shape))
    plain = whitened_svd.compress(weight, whitened_svd.Config(rank=rank, codec="fp32"), given)
    assert plain.num_bytes <= form.num_bytes
    assert weighted_error(form.dense() - weight, given) < 0.5 * weighted_error(plain.dense() - weight, given)


def test_sparse_low_rank_makes_up_for_the_codec_of_its_factors(weight: Tensor) -> None:
    config = dataclasses.replace(KEPT, codec="int4-g8", kept=WIDTH)
    form = sparse_low_rank.compress(weight, config, statistics(40, WIDTH))
    assert isinstance(form.base, LowRank)
    assert set(form.base.spec().codecs.values()) == {"int4-g8"}
    torch.testing.assert_close(form.dense(), weight, rtol=0, atol=10 * EXACT)


def test_sparse_low_rank_refuses_illegal_options(weight: Tensor) -> None:
    with pytest.raises(ValueError, match="kept must be at least 1, not 0"):
        sparse_low_rank.Config(kept=0)
    with pytest.raises(ValueError, match="rounds must be between 1 and 100, not 0"):
        sparse_low_rank.Config(rounds=0)
    with pytest.raises(ValueError, match="codec must be one of"):
        sparse_low_rank.Config(kept_codec="int1")
    with pytest.raises(ValueError, match="kept must be between 1 and 24, not 25"):
        sparse_low_rank.compress(weight, dataclasses.replace(KEPT, kept=25))
    with pytest.raises(ValueError, match="rank must be between 1 and 24, not 25"):
        sparse_low_rank.compress(weight, dataclasses.replace(KEPT, rank=25))
