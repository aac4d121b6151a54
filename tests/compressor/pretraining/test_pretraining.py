"""Layers, loss, attention and the model: what is trained is what is sealed, with as many numbers as published."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from compressor import huggingface
from compressor.formats import Stacked, TTMatrix
from compressor.gpt2 import ACTIVATIONS
from compressor.pretraining._lookup import lookup
from compressor.pretraining.activation import trained_activation
from compressor.pretraining.attention import causal_attention
from compressor.pretraining.config import Config, parse_config
from compressor.pretraining.head import head_loss
from compressor.pretraining.layers import DenseLayer, Layer, LowRankLayer, ProjectedQKV, TTMLayer
from compressor.pretraining.model import head_matrix, initialised, linears, parameter_count, quantized
from compressor.pretraining.text import read_corpus
from tests.tolerances import EXACT

BF16_STEP = 2**-8  # half a unit in the last place, relative
SHAPE = {"vocab_size": 300, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 4}
BASE = {"model": SHAPE, "tokens": 4096, "batch_tokens": 64, "phases": [{"until": 1, "context": 16}]}
FORMS = {
    "dense": {},
    "ttm": {"mlp": {"kind": "ttm", "rank": 8}},
    "lpa": {"attention": {"kind": "lpa", "rank": 8}},
    "low-rank": {"attention": {"kind": "low_rank", "rank": 8}, "mlp": {"kind": "low_rank", "rank": 12}},
    "all-ttm": {part: {"kind": "ttm", "rank": 8} for part in ("embedding", "attention", "mlp")},
    "low-rank-table": {"embedding": {"kind": "low_rank", "rank": 8}},
}


def config_of(form: str, **changes: object) -> Config:
    return parse_config(BASE | FORMS[form] | changes)


def _layers() -> list[Layer]:
    random = torch.Generator().manual_seed(0)
    layers = [
        DenseLayer(48, 16, random),
        LowRankLayer(48, 16, 5, random),
        ProjectedQKV(16, 5, random),
        TTMLayer(48, 16, 5, random),
    ]
    for layer in layers:
        torch.nn.init.normal_(layer.get_parameter("inner_bias" if isinstance(layer, ProjectedQKV) else "bias"))
    return layers


@pytest.mark.parametrize("kind", ["low_rank", "lpa", "ttm"])
def test_layers_start_like_gpt2_if_asked(kind: str) -> None:
    form = {"kind": kind, "rank": 16, "init": "gpt2"}
    layers = linears(
        initialised(config_of("dense", attention=form, mlp=form | {"kind": kind.replace("lpa", "low_rank")}))
    )
    for name, layer in layers.items():
        weight, bias = layer.quantized()
        expected = 0.02 / 2 if name.endswith("c_proj") else 0.02  # 1 / sqrt(2 L) with two layers
        assert weight.dense().std().item() == pytest.approx(expected, rel=0.2)
        assert not bias.any()


@pytest.mark.parametrize("layer", _layers(), ids=lambda layer: type(layer).__name__)
def test_a_sealed_layer_is_the_trained_one(layer: Layer) -> None:
    x = torch.randn(3, 16)
    form, bias = layer.quantized()
    assert form.shape == (48, 16)
    assert torch.allclose(form.matmul(x) + bias, layer(x), atol=EXACT)
    assert torch.allclose(x @ form.dense().T + bias, layer(x), atol=EXACT)


def test_lpa_has_the_published_factors_and_biases() -> None:
    layers = linears(initialised(config_of("lpa")))
    width, rank = SHAPE["n_embd"], 8
    for i in range(SHAPE["n_layer"]):
        qkv, out = layers[f"h.{i}.attn.c_attn"], layers[f"h.{i}.attn.c_proj"]
        assert isinstance(qkv, ProjectedQKV)
        assert isinstance(out, LowRankLayer)
        assert qkv.inner_bias.shape == (3 * rank,)  # on A
        assert out.bias.shape == (width,)  # on B
        matrices = [p for layer in (qkv, out) for p in layer.parameters() if p.dim() == 2]
        assert sum(p.numel() for p in matrices) == 8 * width * rank
        assert isinstance(layers[f"h.{i}.mlp.c_fc"], DenseLayer)


@pytest.mark.parametrize("form", FORMS)
def test_a_sealed_model_is_the_trained_one(form: str) -> None:
    model = initialised(config_of(form))
    ids = torch.randint(300, (2, 20), generator=torch.Generator().manual_seed(0))
    stored = quantized(model, "fp32")
    with torch.no_grad():
        expected = model(ids) @ head_matrix(model).T
        found = stored.logits(stored(ids))
        running = stored.expanded()
        expanded = running.logits(running(ids))
    for scores in (found, expanded):
        assert float((scores - expected).norm() / expected.norm()) < 10 * EXACT


@pytest.mark.parametrize("form", FORMS)
def test_every_parameter_gets_a_gradient_and_the_seed_decides_about_all(form: str) -> None:
    model, again, other = (initialised(config_of(form, seed=seed)) for seed in (3, 3, 4))
    ids = torch.arange(40).view(2, 20)
    head_loss(model(ids).flatten(0, 1), head_matrix(model), ids.flatten()).backward()
    for (name, mine), same, different in zip(
        model.named_parameters(), again.parameters(), other.parameters(), strict=True
    ):
        assert mine.grad is not None, name
        assert torch.isfinite(mine.grad).all(), name
        assert torch.equal(mine, same), name
        constant = mine.dim() == 1 and bool((mine == mine[0]).all())
        assert constant or not torch.equal(mine, different), name


def test_compressed_models_have_fewer_parameters() -> None:
    counts = {form: parameter_count(initialised(config_of(form))) for form in FORMS}
    assert all(counts[form] < counts["dense"] for form in FORMS if form != "dense")


def test_sealed_formats_are_those_that_the_service_knows() -> None:
    stored = quantized(initialised(parse_config(BASE | FORMS["ttm"] | FORMS["lpa"])), "fp16").matrices()
    assert isinstance(stored["h.0.attn.c_attn"], Stacked)
    assert isinstance(stored["h.0.mlp.c_fc"], TTMatrix)
    assert {coded.codec.name for form in stored.values() for coded in form.coded().values()} == {"fp16"}


def _losses(block_rows: int) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(50, 16, generator=random, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(70, 16, generator=random, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(70, (50,), generator=random)
    loss = 3 * head_loss(hidden, weight, targets, block_rows)
    ours = torch.autograd.grad(loss, [hidden, weight])
    plain = 3 * F.cross_entropy(hidden @ weight.T, targets)
    expected = torch.autograd.grad(plain, [hidden, weight])
    assert torch.allclose(loss, plain)
    for mine, theirs in zip(ours, expected, strict=True):
        assert torch.allclose(mine, theirs)
    return [loss, *ours]


def test_the_heads_loss_is_the_cross_entropy_in_blocks_of_any_size() -> None:
    for one, other in pairwise(_losses(rows) for rows in (7, 50, 1024)):
        assert all(torch.allclose(a, b) for a, b in zip(one, other, strict=True))


def test_a_hopeless_prediction_has_a_finite_loss() -> None:
    hidden, weight = torch.full((1, 1), 1e4), torch.tensor([[1.0], [-1.0]])
    assert torch.isfinite(head_loss(hidden, weight, torch.tensor([1])))


@pytest.mark.parametrize("length", [1, 5, 16, 33])
@pytest.mark.parametrize("block_rows", [4, 128])
def test_attention_in_blocks_is_causal_attention(length: int, block_rows: int) -> None:
    qkv = torch.randn(2, length, 96, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, length, 32, dtype=torch.float64)
    ours = causal_attention(qkv, 4, 0.3, block_rows)
    q, k, v = qkv.view(2, length, 3, 4, 8).permute(2, 0, 3, 1, 4)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3).transpose(1, 2).flatten(2)
    assert torch.allclose(ours, expected)
    mine, theirs = (torch.autograd.grad((y * weights).sum(), qkv)[0] for y in (ours, expected))
    assert torch.allclose(mine, theirs)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_an_activation_looked_up_is_the_activation_to_one_rounding(name: str) -> None:
    special = torch.tensor([0.0, -0.0, 1e-40, -1e30, 1e30])
    x = torch.cat([3 * torch.randn(1 << 17), special]).bfloat16().requires_grad_()  # enough for two threads
    weights = torch.randn_like(x)
    (gradient,) = torch.autograd.grad(y := trained_activation(name)(x), x, weights)
    exact = x.detach().double().requires_grad_()
    (slopes,) = torch.autograd.grad(z := ACTIVATIONS[name](exact), exact, weights.double())
    assert torch.allclose(y.double(), z, rtol=BF16_STEP, atol=1e-38)
    assert torch.allclose(gradient.double(), slopes, rtol=BF16_STEP, atol=1e-38)


@pytest.mark.parametrize("batch_tokens", [64, 4096])
@pytest.mark.parametrize("held_out", [True, False])
def test_a_text_too_short_to_train_on_is_refused_and_the_number_that_is_named_will_do(
    tmp_path: Path, batch_tokens: int, held_out: bool
) -> None:
    tokenizer = str(huggingface.EMBEDDED_FOLDER / "tokenizer.json")
    config = config_of("dense", model=SHAPE | {"vocab_size": 16384}, batch_tokens=batch_tokens, tokenizer=tokenizer)
    path, validation = tmp_path / "text.txt", tmp_path / "validation.txt"
    validation.write_text("sea sea")
    other = None if held_out else validation

    def read(tokens: int) -> int:
        path.write_text("sea" + " sea" * (tokens - 2))  # and the end of text
        corpus = read_corpus(config, [path], other)
        return len(corpus.training) + (len(corpus.validation.ids) if held_out else 0)

    with pytest.raises(ValueError, match=r"text: has 20 tokens.*; at least \d+ are needed") as refused:
        read(20)
    need = int(re.findall(r"at least (\d+)", str(refused.value))[0])
    assert read(need) == need
    with pytest.raises(ValueError, match=f"has {need - 1} tokens"):
        read(need - 1)


def test_a_lookup_is_refused_with_the_name_of_what_is_wrong() -> None:
    x, floats = np.zeros((2, 9), np.uint16), np.zeros(1 << 16, np.float32)
    good = {"out": x.copy(), "values": np.zeros(1 << 16, np.uint16), "slopes": floats, "gradient": x, "threads": 1}
    for changes, message in (
        ({"out": np.zeros((9, 2), np.uint16)}, r"out must have shape \[2, 9\], not \[9, 2\]"),
        ({"out": bytes(36)}, "out must be writable"),
        ({"values": np.zeros(1 << 15, np.uint16)}, r"values must have shape \[65536\], not \[32768\]"),
        ({"slopes": good["values"]}, "slopes must be float32, not of format 'H'"),
        ({"gradient": x[:, :8].copy()}, r"gradient must have shape \[2, 9\], not \[2, 8\]"),
        ({"threads": 0}, "threads must be between"),
    ):
        arguments: dict[str, Any] = good | changes
        with pytest.raises((TypeError, ValueError), match=message):
            lookup(x, arguments.pop("out"), **arguments)
