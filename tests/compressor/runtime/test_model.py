"""The decoder as it runs: against transformers, against itself in other pieces and company, and without torch."""

import multiprocessing
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config as PeerConfig
from transformers import GPT2LMHeadModel

from compressor import huggingface
from compressor.artifact.gpt2_config import GPT2Config
from compressor.formats import Dense
from compressor.runtime._decoder import ACTIVATIONS, LANES
from compressor.runtime.generate import Draft, generate
from compressor.runtime.kv import KV_DTYPES, Cache, pages_for
from compressor.runtime.model import Floats, Ids, Model, Read
from compressor.runtime.payoff import Payoff
from tests.conftest import tiny_model
from tests.proposing import Always, shortened
from tests.tolerances import KV_CACHE, PARITY

ONE = np.array([0])


def ids_of(config: GPT2Config, count: int) -> Ids:
    return np.random.default_rng(count).integers(0, config.vocab_size, count)


def whole(model: Model, ids: Ids, dtype: str = "fp32") -> Floats:
    """Return the logits behind every token of one text, read at once."""
    cache = Cache(model.config, 1, len(ids), dtype)
    logits = model.read(ids, cache, ONE, np.array([len(ids)]), wanted=np.arange(len(ids))).logits
    assert logits is not None
    return logits


@pytest.mark.parametrize("variant", ["gpt2-mini", *ACTIVATIONS, "odd-heads-untied"])
def test_logits_equal_transformers(variant: str, tmp_path: Path) -> None:
    if variant == "gpt2-mini":
        folder, peer = "gpt2-mini", GPT2LMHeadModel.from_pretrained(huggingface.EMBEDDED_FOLDER, dtype=torch.float32)
    else:
        odd = variant not in ACTIVATIONS
        config = PeerConfig(
            vocab_size=16384,
            n_positions=64,
            n_embd=33 if odd else 48,
            n_layer=3,
            n_head=3,
            n_inner=100,
            activation_function="gelu_new" if odd else variant,
            scale_attn_by_inverse_layer_idx=odd,
            tie_word_embeddings=not odd,
            eos_token_id=0,
            bos_token_id=0,
        )
        torch.manual_seed(0)
        peer, folder = GPT2LMHeadModel(config), str(tmp_path)
        peer.save_pretrained(tmp_path)
        (tmp_path / "tokenizer.json").write_bytes((huggingface.EMBEDDED_FOLDER / "tokenizer.json").read_bytes())
    ours = huggingface.load(folder).model.decoder()
    ids = ids_of(ours.config, 40)
    with torch.inference_mode():
        expected = peer.eval()(torch.from_numpy(ids)[None]).logits[0].numpy()
    assert abs(whole(ours, ids) - expected).max() <= PARITY


@pytest.fixture(scope="module", params=["fp32", "int8", "int3"])
def model(request: pytest.FixtureRequest) -> Model:
    gpt2 = tiny_model()
    coded = {name: form.recoded(request.param) for name, form in gpt2.matrices().items()}
    return gpt2.with_matrices(coded).decoder()


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@settings(deadline=None)
@given(data=st.data())
def test_a_text_is_its_own(model: Model, dtype: str, data: st.DataObject) -> None:
    """Bit for bit: read in any pieces, beside any others, into any slot and pages, with any threads."""
    config, texts = model.config, data.draw(st.integers(1, 4))
    lengths = [data.draw(st.integers(1, config.n_positions)) for _ in range(texts)]
    ids = [ids_of(config, length) for length in lengths]
    pages = (texts + 1) * pages_for(config.n_positions)
    cache, read = Cache(config, texts + 1, config.n_positions, dtype, pages), [0] * texts
    cache.table[:] = np.array(data.draw(st.permutations(range(pages)))).reshape(cache.table.shape)
    slots = data.draw(st.permutations(range(texts + 1)))[:texts]
    found: list[list[Floats]] = [[] for _ in range(texts)]
    model.threads = data.draw(st.integers(1, 3))
    while left := [t for t in range(texts) if read[t] < lengths[t]]:
        group = data.draw(st.lists(st.sampled_from(left), min_size=1, unique=True))
        counts = np.array([data.draw(st.integers(1, lengths[t] - read[t])) for t in group])
        tokens = np.concatenate([ids[t][read[t] : read[t] + n] for t, n in zip(group, counts, strict=True)])
        logits = model.read(tokens, cache, np.array(slots)[group], counts, wanted=np.arange(len(tokens))).logits
        assert logits is not None
        for t, part in zip(group, np.split(logits, counts.cumsum()[:-1]), strict=True):
            found[t].append(part)
            read[t] += len(part)
    for t in range(texts):
        np.testing.assert_array_equal(np.concatenate(found[t]), whole(model, ids[t], dtype))


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@settings(deadline=None)
@given(data=st.data())
def test_texts_may_have_their_first_pages_in_common(model: Model, dtype: str, data: st.DataObject) -> None:
    """Bit for bit as without: however many do, and however much of it."""
    config, room = model.config, pages_for(model.config.n_positions)
    common = data.draw(st.lists(st.integers(0, room - 1), min_size=1, max_size=12))  # pages of each text
    slots, first = len(common) + 1, ids_of(config, config.n_positions)
    cache = Cache(config, slots, config.n_positions, dtype, slots * room)
    cache.table[:] = np.arange(slots * room).reshape(slots, room)
    model.read(first, cache, ONE, np.array([len(first)]))
    for slot, pages in enumerate(common, 1):
        cache.table[slot, :pages] = cache.table[0, :pages]
        cache.lengths[slot] = LANES * pages
    own = np.random.default_rng(slots).integers(0, config.vocab_size, (data.draw(st.integers(1, LANES)), len(common)))
    model.threads = data.draw(st.integers(1, 3))
    every = np.arange(len(common))
    found = [model.read(row, cache, every + 1, np.ones(len(row), int), wanted=every).logits for row in own]
    for t, pages in enumerate(common):
        text = np.concatenate([first[: LANES * pages], own[:, t]])
        expected = whole(model, text, dtype)[LANES * pages :]
        np.testing.assert_array_equal([logits[t] for logits in found if logits is not None], expected)


def test_callers_at_the_same_time_do_not_mix(model: Model) -> None:
    ids = [ids_of(model.config, model.config.n_positions)] * 8
    expected = whole(model, ids[0])
    with ThreadPoolExecutor(8) as pool:
        for logits in pool.map(lambda own: whole(model, own), ids * 8):
            np.testing.assert_array_equal(logits, expected)


def test_hidden_states_and_another_lookup(model: Model) -> None:
    ids = ids_of(model.config, 9)
    cache, rows = Cache(model.config, 1, 9), model.embed(ids)
    model.row_lookup = lambda _: rows
    try:
        read = model.read(ids, cache, ONE, np.array([9]), hidden=True)
    finally:
        model.row_lookup = None
    assert read.logits is None
    assert read.hidden is not None
    np.testing.assert_array_equal(model.logits(read.hidden), whole(model, ids))


def test_an_emptied_slot_starts_anew_whatever_lies_in_its_memory(model: Model) -> None:
    ids, size = ids_of(model.config, 5), model.config.n_embd // model.config.n_head
    cache = Cache(model.config, 2, 8)
    cache.keys[:] = cache.values[..., :size] = np.nan
    for _ in range(2):
        logits = model.read(ids, cache, np.array([1]), np.array([5]), wanted=np.arange(5)).logits
        assert logits is not None
        np.testing.assert_array_equal(logits, whole(model, ids))
        cache.lengths[1] = 0
        assert cache.lengths.tolist() == [0, 0]


@pytest.mark.parametrize("dtype", KV_DTYPES)
def test_keys_and_values_are_rounded_to_the_caches_dtype_and_no_further(model: Model, dtype: str) -> None:
    ids = ids_of(model.config, 30)
    found, expected = whole(model, ids, dtype), whole(model, ids)
    assert np.linalg.norm(found - expected) <= KV_CACHE[dtype] * np.linalg.norm(expected)


def test_what_fp16_cannot_hold_is_held_as_its_largest_value() -> None:
    gpt2 = tiny_model()
    huge = {"h.0.attn.c_attn": Dense.of(1e6 * gpt2.matrices()["h.0.attn.c_attn"].dense(), "int8")}
    model, ids = gpt2.with_matrices(huge).decoder(), ids_of(gpt2.config, 3)
    cache = Cache(model.config, 1, 4, "fp16")
    hidden = model.read(ids, cache, ONE, np.array([3]), hidden=True).hidden
    assert hidden is not None
    assert np.isfinite(hidden).all()
    assert abs(cache.keys).max() == np.finfo(np.float16).max


def test_the_bytes_of_a_token_are_known_before_the_cache_is_made(model: Model) -> None:
    for dtype in KV_DTYPES:
        cache = Cache(model.config, 3, 10, dtype)
        assert cache.num_bytes == 3 * LANES * model.kv_bytes_per_token(dtype)
        assert cache.num_bytes == cache.pages * cache.page_bytes


def test_pages_that_are_given_back_hold_nothing(model: Model) -> None:
    """No other page is touched, whatever the system's pages are."""
    cache = Cache(model.config, 1, 1, pages=9)
    cache.keys[:] = cache.values[:] = 1
    cache.discard(4)
    others = [page for page in range(9) if page != 4]
    assert (cache.keys[others] == 1).all()
    assert (cache.values[others] == 1).all()
    assert (cache.keys[4] == 0).any()


@pytest.mark.parametrize("temperature", [0, 0.3, 1])
@pytest.mark.parametrize("draft", ["copy", "near", "stranger", "short"])
def test_generation_is_the_same_with_a_draft(draft: str, temperature: float) -> None:
    gpt2 = tiny_model(seed=1)
    int8 = {name: Dense.of(form.dense(), "int8") for name, form in gpt2.matrices().items()}
    short = shortened(gpt2, 20)
    drafts = {"copy": gpt2, "near": gpt2.with_matrices(int8), "stranger": tiny_model(seed=2), "short": short}
    model = Counting.of(gpt2.decoder())
    for length in (1, 30):
        new = 64 - length
        prompts = ids_of(gpt2.config, 2 * length).reshape(2, length)
        for prompt in (prompts[:1], prompts):  # of which two are written without it
            plain = generate(model, prompt, new, temperature=temperature, seed=length)
            for payoff in (Always(5), Payoff(5)):
                model.reads = 0
                small = Draft(drafts[draft].decoder(), payoff)
                found = generate(model, prompt, new, temperature=temperature, seed=length, draft=small)
                np.testing.assert_array_equal(found, plain)
                if draft == "copy" and len(prompt) == 1 and isinstance(payoff, Always):
                    assert model.reads == 1 + -(-(new - 1) // 6)


class Counting(Model):
    """Counts how often it reads."""

    @classmethod
    def of(cls, decoder: Model) -> "Counting":
        counting = cls.__new__(cls)
        counting.__dict__.update(decoder.__dict__)
        counting.reads = 0
        return counting

    reads: int

    def read(self, tokens: Ids, cache: Cache, slots: Ids, counts: Ids, **asked: Any) -> Read:
        self.reads += 1
        return super().read(tokens, cache, slots, counts, **asked)


def test_generation_is_what_the_logits_say(model: Model) -> None:
    prompt = np.array([[1, 2, 3]])
    (ids,) = generate(model, prompt, 5, temperature=0)
    np.testing.assert_array_equal(ids[3:], whole(model, ids[:-1]).argmax(-1)[2:])
    np.testing.assert_array_equal(generate(model, np.repeat(prompt, 3, 0), 5, temperature=0), [ids] * 3)
    one, same, other = (generate(model, prompt, 20, temperature=1, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    with pytest.raises(ValueError, match="max_new_tokens must be between 0 and 61, not 62"):
        generate(model, prompt, 62, temperature=0)


def test_what_does_not_fit_is_refused(model: Model) -> None:
    config = model.config
    cache = Cache(config, 2, 4)
    with pytest.raises(ValueError, match="5 tokens exceed the capacity of 4"):
        model.read(ids_of(config, 5), cache, ONE, np.array([5]))
    with pytest.raises(ValueError, match="slots must be different"):
        model.read(ids_of(config, 2), cache, np.array([1, 1]), np.array([1, 1]))
    with pytest.raises(IndexError):
        model.read(ids_of(config, 1), cache, np.array([2]), np.array([1]))
    with pytest.raises(IndexError, match=r"table must lie in \[0, 3\) where slot 1 has tokens, not -1"):
        model.read(ids_of(config, 1), Cache(config, 2, 4, pages=3), np.array([1]), ONE + 1)
    with pytest.raises(IndexError, match="tokens must lie in"):
        model.read(np.array([config.vocab_size]), cache, ONE, np.array([1]))
    with pytest.raises(IndexError, match="wanted must lie in"):
        model.read(np.array([0]), cache, ONE, np.array([1]), wanted=np.array([1]))
    with pytest.raises(ValueError, match="dtype must be one of"):
        Cache(config, 1, 1, "int8")
    with pytest.raises(ValueError, match="capacity must be between 1 and"):
        Cache(config, 1, config.n_positions + 1)
    assert cache.lengths.tolist() == [0, 0]


def test_heads_are_padded_with_zeros(model: Model) -> None:
    config = model.config
    cache = Cache(config, 1, 4)
    model.read(ids_of(config, 4), cache, ONE, np.array([4]))
    assert cache.values.shape[-1] % LANES == 0
    assert not cache.values[..., config.n_embd // config.n_head :].any()


def test_no_torch() -> None:
    code = "import compressor.runtime.model, sys; print(sorted({'torch', 'transformers'} & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_child_process_computes_too(model: Model) -> None:
    """After a fork the parent's threads are gone; new ones are made."""
    model.threads = 2
    ids = ids_of(model.config, model.config.n_positions)
    expected = whole(model, ids)
    _FORKED[:] = [model]
    with multiprocessing.get_context("fork").Pool(1) as pool:
        np.testing.assert_array_equal(pool.apply(_whole_of, (ids,)), expected)


_FORKED: list[Model] = []


def _whole_of(ids: Ids) -> Floats:
    return whole(_FORKED[0], ids)
