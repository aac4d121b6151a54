"""A GPT-2 whose linears are trained from scratch, and what it becomes when it is stored."""

from math import sqrt
from typing import cast

import torch
from torch import Generator, Tensor, nn

from compressor.artifact.gpt2_config import GPT2Config
from compressor.artifact.shapes import tt_ranks
from compressor.formats import Dense, Format, LowRank, TTMatrix
from compressor.gpt2 import GPT2, MLP, Linear, encoded
from compressor.pretraining.activation import trained_activation
from compressor.pretraining.attention import TrainedAttention
from compressor.pretraining.config import Config, LayerSpec, table_modes
from compressor.pretraining.layers import SPREAD, DenseLayer, Layer, LowRankLayer, ProjectedQKV, TTMLayer, drawn_cores

LINEARS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


def initialised(config: Config) -> GPT2:
    """Return an untrained model with all its parameters in fp32; the seed alone decides about them.

    Its linears are the layers of `compressor.pretraining.layers`; `quantized` makes a model of formats of it.
    """
    shape = config.decoder()
    random = torch.Generator().manual_seed(config.seed)
    matrices: dict[str, Format] = {
        name: Dense.of(torch.zeros(size), "fp32")
        for name, size in shape.matrix_shapes().items()
        if name.startswith("h.")
    }
    matrices["wte"] = _table(config.embedding, shape, random).trainable()
    matrices["wpe"] = _gaussian(shape.n_positions, shape.n_embd, random).trainable()
    norms = {name: torch.ones(size) for name, size in shape.vector_shapes().items() if name.endswith(".weight")}
    zeros = {name: torch.zeros(size) for name, size in shape.vector_shapes().items()}
    model = GPT2(shape, matrices, encoded(zeros | norms, "fp32"))
    if config.embedding.rank is not None:
        model.wte = cast("Format", _FullPrecision(model.wte))
    for i, block in enumerate(model.h):
        forms = {name: config.attention if name.startswith("attn") else config.mlp for name in LINEARS}
        layers = [
            cast("Linear", layer_of(form, name, shape, random)) for name, form in forms.items()
        ]  # has all that training calls
        block.attn = TrainedAttention(shape, i, layers[0], layers[1])
        block.mlp = MLP(shape, layers[2], layers[3])
        block.mlp.activation = trained_activation(shape.activation_function)
    return model.requires_grad_(True)


def layer_of(form: LayerSpec, name: str, shape: GPT2Config, random: Generator) -> Layer:
    """Return the layer for one of LINEARS."""
    out_features, in_features = shape.matrix_shapes()[f"h.0.{name}"]
    spread = SPREAD / sqrt(2 * shape.n_layer) if name.endswith("c_proj") else SPREAD
    if form.rank is None:
        return DenseLayer(out_features, in_features, random, spread)
    given = spread if form.init == "gpt2" else None
    if form.kind == "ttm":
        return TTMLayer(out_features, in_features, form.rank, random, given)
    if form.kind == "lpa" and name == "attn.c_attn":
        return ProjectedQKV(in_features, form.rank, random, given)
    return LowRankLayer(out_features, in_features, form.rank, random, given)


def quantized(model: GPT2, codec: str) -> GPT2:
    """Return the trained model as it is stored."""
    layers = linears(model)
    vectors = {
        name: model.get_parameter(name).detach().clone()
        for name in model.config.vector_shapes()
        if name.removesuffix(".bias") not in layers
    }
    matrices: dict[str, Format] = {"wte": model.wte.quantized(), "wpe": model.wpe.quantized()}
    for name, layer in layers.items():
        matrices[name], vectors[f"{name}.bias"] = layer.quantized()
    recoded = {name: form.recoded(codec) for name, form in matrices.items()}
    return GPT2(model.config, recoded, encoded(vectors, codec))


def linears(model: GPT2) -> dict[str, Layer]:
    """Return the trained layers by the name of their matrix."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Layer)}


def head_matrix(model: GPT2) -> Tensor:
    """Return the tied head [V, D], with its derivative."""
    return model.wte.dense()


def parameter_count(model: nn.Module) -> int:
    """Return how many parameters are trained."""
    return sum(parameter.numel() for parameter in model.parameters())


class _FullPrecision(nn.Module):
    """A factorised table whose rows and matrix are never computed in bf16: they are sums of long products."""

    def __init__(self, form: Format) -> None:
        super().__init__()
        self.form = form

    def rows(self, ids: Tensor) -> Tensor:
        with torch.autocast(ids.device.type, enabled=False):
            return self.form.rows(ids)

    def dense(self) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return self.form.dense()

    def quantized(self) -> Format:
        return self.form.quantized()


def _table(form: LayerSpec, shape: GPT2Config, random: Generator) -> Format:
    """Return the token embedding [V, D]."""
    size = (shape.vocab_size, shape.n_embd)
    if form.rank is None:
        return _gaussian(*size, random)
    if form.kind == "ttm":
        in_modes, out_modes = table_modes(*size)
        ranks = tt_ranks([i * o for i, o in zip(in_modes, out_modes, strict=True)], form.rank)
        return TTMatrix.of(drawn_cores(in_modes, out_modes, ranks, random), size, "fp32")
    left, right = torch.randn(size[0], form.rank, generator=random), torch.randn(form.rank, size[1], generator=random)
    return LowRank.of(SPREAD / sqrt(form.rank) * left, right, "fp32")


def _gaussian(rows: int, columns: int, random: Generator) -> Dense:
    return Dense.of(SPREAD * torch.randn(rows, columns, generator=random), "fp32")
