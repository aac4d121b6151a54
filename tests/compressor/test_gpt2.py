"""The decoder against transformers."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config as PeerConfig
from transformers import GPT2LMHeadModel

from compressor import huggingface
from compressor.artifact.gpt2_config import GPT2Config
from compressor.gpt2 import GPT2, encoded
from tests.conftest import TINY, tiny_model
from tests.tolerances import PARITY

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
    return huggingface.load(name).model.expanded(), peer


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
    yield huggingface.load(str(folder)).model.expanded(), peer


@torch.inference_mode()
def test_logits_equal_transformers(pair: Pair) -> None:
    ours, peer = pair
    ids = torch.randint(ours.config.vocab_size, (2, 40), generator=torch.Generator().manual_seed(0))
    assert (ours.logits(ours(ids)) - peer(ids).logits).abs().max() <= PARITY


def test_a_text_beyond_the_context_is_refused() -> None:
    with pytest.raises(ValueError, match="65 tokens exceed the context of 64"):
        tiny_model()(torch.zeros(1, 65, dtype=torch.int64))


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
