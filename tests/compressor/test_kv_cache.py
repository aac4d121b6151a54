"""Slots of the KV cache: whoever shares it, a text reads only its own past."""

import pytest
import torch

from compressor.formats import Dense
from compressor.gpt2 import GPT2
from compressor.kv_cache import KV_DTYPES, KVCache
from tests.conftest import TINY, tiny_model
from tests.tolerances import EXACT, KV_CACHE


@pytest.fixture(scope="module")
def model() -> GPT2:
    return tiny_model().prepared()


def _ids(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(TINY.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def test_a_slot_does_not_see_the_others(model: GPT2) -> None:
    texts = _ids(3, 20)
    cache = model.new_cache(rows=3, capacity=32)
    for slot, length in ((2, 7), (0, 13), (1, 1)):  # prefills one by one, as a service does
        model(texts[slot : slot + 1, :length], cache, rows=torch.tensor([slot]))
    assert cache.lengths.tolist() == [13, 1, 7]
    order = torch.tensor([1, 2])
    new = texts[order, cache.lengths[order]].unsqueeze(1)  # [2, 1]
    hidden = model(new, cache, rows=order)
    assert cache.lengths.tolist() == [13, 2, 8]
    for row, slot in enumerate(order.tolist()):
        alone = model(texts[slot : slot + 1, : cache.lengths[slot]])[0, -1]
        torch.testing.assert_close(hidden[row, 0], alone, rtol=10 * EXACT, atol=10 * EXACT)


@torch.inference_mode()
def test_a_reset_slot_starts_anew_whatever_lies_in_its_memory(model: GPT2) -> None:
    cache = model.new_cache(rows=2, capacity=16)
    cache.keys.fill_(torch.nan)
    cache.values.fill_(torch.nan)
    expected = model(_ids(1, 5))
    for _ in range(2):
        found = torch.cat([model(chunk, cache, rows=torch.tensor([1])) for chunk in _ids(1, 5).split([3, 1, 1], 1)], 1)
        torch.testing.assert_close(found, expected, rtol=10 * EXACT, atol=10 * EXACT)
        cache.reset(1)
        assert cache.lengths.tolist() == [0, 0]


@torch.inference_mode()
@pytest.mark.parametrize("dtype", KV_DTYPES, ids=str)
def test_keys_and_values_are_rounded_to_the_caches_dtype_and_no_further(model: GPT2, dtype: torch.dtype) -> None:
    ids = _ids(2, 12)
    cache = model.new_cache(rows=2, capacity=12, dtype=dtype)
    found = torch.cat([model(chunk, cache) for chunk in ids.split([4, 1, 1, 6], 1)], 1)
    expected = model(ids)
    assert (found - expected).norm() <= KV_CACHE[dtype] * expected.norm()


@torch.inference_mode()
def test_what_fp16_cannot_hold_is_held_as_its_largest_number(model: GPT2) -> None:
    name = "h.0.attn.c_attn"
    codecs = ("fp32", "int8")
    for codec in codecs:
        huge = Dense.of(1e6 * model.matrices()[name].dense(), codec)
        cache = model.new_cache(rows=1, capacity=4, dtype=torch.float16)
        hidden = model.with_matrices({name: huge})(_ids(1, 3), cache)
        assert torch.isfinite(hidden).all()
        assert cache.keys[0, :, :, :3].abs().max() == torch.finfo(torch.float16).max


def test_the_bytes_of_a_token_are_known_before_the_cache_is_made(model: GPT2) -> None:
    for dtype in KV_DTYPES:
        cache = model.new_cache(rows=3, capacity=10, dtype=dtype)
        assert cache.num_bytes == 30 * TINY.kv_bytes_per_token(dtype)
        cache.lengths += torch.tensor([1, 0, 4])
        assert cache.used_bytes == 5 * TINY.kv_bytes_per_token(dtype)


def test_what_does_not_fit_is_refused_and_nothing_is_kept(model: GPT2) -> None:
    cache = model.new_cache(rows=2, capacity=4)
    model(_ids(1, 3), cache, rows=torch.tensor([1]))
    with pytest.raises(ValueError, match="5 tokens exceed the capacity of 4"):
        model(_ids(2, 2), cache)
    assert cache.lengths.tolist() == [0, 3]
    with pytest.raises(ValueError, match="slots and capacity must be at least 1, not 0 and 4"):
        model.new_cache(rows=0, capacity=4)
    with pytest.raises(ValueError, match=r"dtype must be float32, bfloat16 or float16, not torch.int8"):
        KVCache(layers=1, slots=1, capacity=1, heads=1, size=4, dtype=torch.int8)
