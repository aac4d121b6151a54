"""Pieces: a table is cut once, put together again, and its forms have the bytes that were said."""

import itertools

import pytest
import torch

from compressor.formats import Dense
from compressor.methods import METHODS
from compressor.methods.base import Statistics
from compressor.progress import silent
from compressor.recipes.pieces import assembled, candidates, pieces, size_bytes


def test_a_large_table_is_cut_into_blocks_of_doubling_length_and_put_together_again() -> None:
    cut = pieces("wte", (16384, 8))
    assert [piece.rows for piece in cut] == [
        slice(0, 512),
        slice(512, 1024),
        slice(1024, 2048),
        slice(2048, 4096),
        slice(4096, 8192),
        slice(8192, 16384),
    ]
    table = torch.randn(16384, 8, generator=torch.Generator().manual_seed(0))
    forms = [(piece, Dense.of(table[piece.rows], "fp32")) for piece in reversed(cut)]
    assert torch.equal(assembled(forms)["wte"].dense(), table)


@pytest.mark.parametrize("shape", [(4096, 8), (50257, 8), (5000, 8)])
def test_blocks_cover_a_table_once(shape: tuple[int, int]) -> None:
    cut = pieces("lm_head", shape)
    assert cut[0].rows.start == 0
    assert cut[-1].rows.stop == shape[0]
    assert all(a.rows.stop == b.rows.start for a, b in itertools.pairwise(cut))
    assert len(pieces("wpe", shape)) == len(pieces("wte", (4095, 8))) == 1


@pytest.mark.parametrize("name", ["wte", "wpe", "h.0.attn.c_attn", "h.0.mlp.c_proj"])
@pytest.mark.parametrize("shape", [(48, 16), (17, 40)])
def test_what_a_form_occupies_is_known_before_it_is_found(name: str, shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    statistics = Statistics(second_moment=torch.eye(shape[1]))
    for method, options in candidates(name, shape):
        form = METHODS[method].found(name, weight, METHODS[method].config(**options), statistics, silent)
        assert form.num_bytes == size_bytes(options, shape)
