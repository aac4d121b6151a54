"""The decoder against transformers, and its cache against itself."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config as PeerConfig
from transformers import GPT2LMHeadModel

from compressor import huggingface
from compressor.artifact.gpt2_config import GPT2Config
from compressor.gpt2 import GPT2, encoded
from compressor.runtime.generate import generate
from tests.conftest import TINY, tiny_model
from tests.tolerances import EXACT, PARITY

Pair = tuple[GPT2, GPT2LMHeadModel]

# Everything that full-size GPT-2 leaves at its default.
VARIANT = PeerConfig(
    vocab_size=16384,
    n_positions=128,
    n_embd=48,
    n_layer=3,
    n_head=3,
    n_inner=100,
    activation_function="gelu",
    scale_attn_by_inverse_layer_idx=True,
    eos_token_id=0,
    bos_token_id=0,
    tie_word_embeddings=False,
)


def _load(folder: Path, name: str) -> Pair:
    peer = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval()
    return huggingface.load(name).model.prepared(), peer


@pytest.fixture(scope="module", params=["gpt2-mini", "random-124M", "random-variant"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    if request.param == "gpt2-mini":
        yield _load(huggingface.EMBEDDED_FOLDER, "gpt2-mini")
        return
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    peer = GPT2LMHeadModel(VARIANT if request.param == "random-variant" else PeerConfig(eos_token_id=0)).eval()
    peer.save_pretrained(folder)
    tokenizer = (huggingface.EMBEDDED_FOLDER / "tokenizer.json").read_bytes()
    (folder / "tokenizer.json").write_bytes(tokenizer)
    yield huggingface.load(str(folder)).model.prepared(), peer


@torch.inference_mode()
def test_logits_equal_transformers_without_a_cache(pair: Pair) -> None:
    ours, peer = pair
    ids = torch.randint(ours.config.vocab_size, (2, 40), generator=torch.Generator().manual_seed(0))
    assert (ours.logits(ours(ids)) - peer(ids).logits).abs().max() <= PARITY


@torch.inference_mode()
def test_logits_equal_transformers_batched_with_unequal_lengths_and_a_cache(pair: Pair) -> None:
    ours, peer = pair
    lengths = torch.tensor([3, 17, 9])
    total = int(lengths.max()) + 5
    ids = torch.randint(ours.config.vocab_size, (3, total), generator=torch.Generator().manual_seed(1))
    expected = [peer(ids[b : b + 1, : int(lengths[b]) + 5]).logits[0] for b in range(3)]  # [length + 5, V] each
    cache = ours.new_cache(rows=3, capacity=total)
    prefill = ours.logits(ours(ids[:, : int(lengths.max())], cache, counts=lengths))
    for b in range(3):
        assert (prefill[b, : lengths[b]] - expected[b][: lengths[b]]).abs().max() <= PARITY
    for _ in range(5):
        new = ids.gather(1, cache.lengths.unsqueeze(1))  # [B, 1]
        at = cache.lengths.clone()
        logits = ours.logits(ours(new, cache))[:, 0]
        for b in range(3):
            assert (logits[b] - expected[b][at[b]]).abs().max() <= PARITY


@torch.inference_mode()
def test_a_prompt_may_come_in_chunks_of_any_size() -> None:
    model = tiny_model()
    ids = torch.randint(model.config.vocab_size, (2, 20))
    whole = model(ids)
    cache = model.new_cache(rows=2, capacity=20)
    chunks = torch.cat([model(chunk, cache) for chunk in ids.split([1, 7, 2, 10], dim=1)], dim=1)
    torch.testing.assert_close(chunks, whole, rtol=10 * EXACT, atol=10 * EXACT)


@torch.inference_mode()
def test_padding_changes_nothing() -> None:
    model = tiny_model()
    ids = torch.randint(model.config.vocab_size, (2, 12))
    counts = torch.tensor([5, 12])
    caches = [model.new_cache(rows=2, capacity=13) for _ in range(2)]
    model(ids, caches[0], counts=counts)
    ids[0, 5:] = 0
    model(ids, caches[1], counts=counts)
    new = torch.tensor([[1], [2]])
    assert torch.equal(model(new, caches[0]), model(new, caches[1]))


def test_growing_past_the_capacity_is_refused() -> None:
    model = tiny_model()
    cache = model.new_cache(rows=1, capacity=4)
    with pytest.raises(ValueError, match="5 tokens exceed the capacity of 4"):
        model(torch.zeros(1, 5, dtype=torch.int64), cache)
    with pytest.raises(ValueError, match="capacity must be between 1 and n_positions = 64, not 65"):
        model.new_cache(rows=1, capacity=65)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_head": 5}, "n_embd must be a multiple of n_head = 5, not 32"),
        ({"vocab_size": 0}, "vocab_size must be an integer between 2 and 2147483647, not 0"),
        ({"eos_token_id": 16384}, "eos_token_id must be an integer in"),
        ({"activation_function": "swish"}, "activation_function must be one of gelu_new, gelu, relu, .*, not 'swish'"),
    ],
)
def test_illegal_hyper_parameters_name_the_field(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GPT2Config(**(TINY.__dict__ | change))


def test_missing_unknown_and_misshapen_matrices_are_refused() -> None:
    model = tiny_model()
    matrices, vectors = model.matrices(), model.vectors()
    with pytest.raises(ValueError, match="matrix wpe is missing"):
        GPT2(TINY, {name: form for name, form in matrices.items() if name != "wpe"}, vectors)
    with pytest.raises(ValueError, match="matrix surplus is unknown"):
        GPT2(TINY, matrices | {"surplus": matrices["wpe"]}, vectors)
    with pytest.raises(ValueError, match=r"vector ln_f.bias must have shape \[32\], not \[3\]"):
        GPT2(TINY, matrices, vectors | encoded({"ln_f.bias": torch.zeros(3)}, "fp32"))
    with pytest.raises(ValueError, match="vectors must be stored by one codec, not fp16, fp32"):
        GPT2(TINY, matrices, vectors | encoded({"ln_f.bias": torch.zeros(32)}, "fp16"))


@torch.inference_mode()
def test_generation_is_what_the_scores_say() -> None:
    model = tiny_model()
    prompt = torch.tensor([[1, 2, 3]])
    ids = generate(model, prompt, 5, temperature=0)
    for t in range(3, 8):
        assert ids[0, t] == model.logits(model(ids[:, :t])[0, -1]).argmax()
    sampled = [generate(model, prompt, 20, temperature=1, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(sampled[0], sampled[1])
    assert not torch.equal(sampled[0], sampled[2])
    with pytest.raises(ValueError, match="max_new_tokens must be between 0 and 61, not 62"):
        generate(model, prompt, 62, temperature=0)
