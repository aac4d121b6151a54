"""A lean GPT-2 decoder whose every matrix is a format. It trains, evaluates and serves.

The architecture is Radford et al., "Language Models are Unsupervised Multitask Learners" (2019), section
2.3; matrices are [out, in] and named as in Hugging Face's checkpoints without the `transformer.` prefix.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressor.formats import Format, prepared

Activation = Literal["gelu_new", "gelu", "relu"]
Component = Literal["wte", "wpe", "attn", "mlp", "norm"]
COMPONENTS: tuple[Component, ...] = ("wte", "wpe", "attn", "mlp", "norm")


@dataclass(frozen=True, kw_only=True)
class GPT2Config:
    """GPT-2's hyper-parameters, under Hugging Face's names.

    Attributes:
        vocab_size: V.
        n_positions: longest context in tokens.
        n_embd: D.
        n_layer: L.
        n_head: H; n_embd is a multiple of it.
        n_inner: width of the MLP, usually 4 D.
        layer_norm_epsilon: added to the variance.
        activation_function: of the MLP.
        scale_attn_by_inverse_layer_idx: divide the scores of layer l by l + 1.
        eos_token_id: ends a text.
    """

    vocab_size: int
    n_positions: int
    n_embd: int
    n_layer: int
    n_head: int
    n_inner: int
    eos_token_id: int
    layer_norm_epsilon: float = 1e-5
    activation_function: Activation = "gelu_new"
    scale_attn_by_inverse_layer_idx: bool = False

    def __post_init__(self) -> None:
        for field in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner"):
            if type(value := getattr(self, field)) is not int or value < 1:
                raise ValueError(f"{field} must be a positive integer, not {value!r}")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd must be a multiple of n_head = {self.n_head}, not {self.n_embd}")
        if not 0 <= self.eos_token_id < self.vocab_size:
            raise ValueError(f"eos_token_id must lie in [0, {self.vocab_size}), not {self.eos_token_id}")
        if self.activation_function not in ACTIVATIONS:
            legal = ", ".join(ACTIVATIONS)
            raise ValueError(f"activation_function must be one of {legal}, not {self.activation_function!r}")

    def matrix_shapes(self) -> dict[str, tuple[int, int]]:
        """Return the shape [out, in] of every matrix by name."""
        d, inner = self.n_embd, self.n_inner
        shapes = {"wte": (self.vocab_size, d), "wpe": (self.n_positions, d)}
        for i in range(self.n_layer):
            shapes[f"h.{i}.attn.c_attn"] = (3 * d, d)
            shapes[f"h.{i}.attn.c_proj"] = (d, d)
            shapes[f"h.{i}.mlp.c_fc"] = (inner, d)
            shapes[f"h.{i}.mlp.c_proj"] = (d, inner)
        return shapes

    def vector_shapes(self) -> dict[str, tuple[int]]:
        """Return the shape of every bias and LayerNorm vector by name."""
        d = self.n_embd
        shapes: dict[str, tuple[int]] = {}
        for i in range(self.n_layer):
            for norm in ("ln_1", "ln_2"):
                shapes |= {f"h.{i}.{norm}.weight": (d,), f"h.{i}.{norm}.bias": (d,)}
            for linear, size in (
                ("attn.c_attn", 3 * d),
                ("attn.c_proj", d),
                ("mlp.c_fc", self.n_inner),
                ("mlp.c_proj", d),
            ):
                shapes[f"h.{i}.{linear}.bias"] = (size,)
        return shapes | {"ln_f.weight": (d,), "ln_f.bias": (d,)}


def component_of(name: str) -> Component:
    """Return the component whose bytes the matrix or vector called `name` counts towards."""
    if name in ("wte", "lm_head"):
        return "wte"
    if name == "wpe":
        return "wpe"
    if ".attn." in name:
        return "attn"
    return "mlp" if ".mlp." in name else "norm"


class KVCache:
    """Keys and values of B rows, each with its own length.

    Attributes:
        keys, values: [L, B, H, capacity, D / H].
        lengths: tokens held per row [B], int64.
    """

    def __init__(self, config: GPT2Config, batch: int, capacity: int) -> None:
        if not 1 <= capacity <= config.n_positions:
            raise ValueError(f"capacity must be between 1 and n_positions = {config.n_positions}, not {capacity}")
        shape = (config.n_layer, batch, config.n_head, capacity, config.n_embd // config.n_head)
        self.keys = torch.zeros(shape)
        self.values = torch.zeros(shape)
        self.lengths = torch.zeros(batch, dtype=torch.int64)

    @property
    def capacity(self) -> int:
        """Tokens that a row can hold."""
        return self.keys.shape[3]

    @property
    def num_bytes(self) -> int:
        """Bytes that keys and values occupy."""
        return self.keys.nbytes + self.values.nbytes

    def append(self, layer: int, keys: Tensor, values: Tensor, positions: Tensor, used: int) -> tuple[Tensor, Tensor]:
        """Write keys and values [B, H, T, D / H] at `positions` [B, T]; return the first `used` slots."""
        rows = torch.arange(positions.shape[0]).unsqueeze(1)  # [B, 1]
        self.keys[layer][rows, :, positions] = keys.transpose(1, 2)  # [B, T, H, D / H]
        self.values[layer][rows, :, positions] = values.transpose(1, 2)
        return self.keys[layer][:, :, :used], self.values[layer][:, :, :used]


@dataclass(frozen=True)
class _Step:
    """Where the new tokens of one forward pass stand; the same for all layers."""

    positions: Tensor  # [B, T]
    mask: Tensor | None  # [B, 1, T, used], True where attention may look; None: causal from 0
    cache: KVCache | None
    used: int


class Linear(nn.Module):
    """y = x W^T + b."""

    def __init__(self, weight: Format, bias: Tensor) -> None:
        super().__init__()
        self.weight = weight
        self.bias = nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight.matmul(x) + self.bias


class LayerNorm(nn.Module):
    """LayerNorm over the last axis."""

    def __init__(self, weight: Tensor, bias: Tensor, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.bias.shape, self.weight, self.bias, self.epsilon)


class Attention(nn.Module):
    """Causal multi-head self-attention; q, k and v are one fused matrix [3 D, D]."""

    def __init__(self, config: GPT2Config, layer: int, c_attn: Linear, c_proj: Linear) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.layer = layer
        self.scale = (config.n_embd // config.n_head) ** -0.5
        if config.scale_attn_by_inverse_layer_idx:
            self.scale /= layer + 1
        self.c_attn = c_attn
        self.c_proj = c_proj

    def forward(self, x: Tensor, step: _Step) -> Tensor:
        b, t, d = x.shape
        heads = self.c_attn(x).view(b, t, 3, self.n_head, d // self.n_head)  # [B, T, 3, H, D / H]
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # 3 x [B, H, T, D / H]
        if step.cache is not None:
            k, v = step.cache.append(self.layer, k, v, step.positions, step.used)  # [B, H, used, D / H]
        causal = step.mask is None and t > 1
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=step.mask, is_causal=causal, scale=self.scale)
        return self.c_proj(y.transpose(1, 2).reshape(b, t, d))  # type: ignore[no-any-return]


class MLP(nn.Module):
    """Two linears with a nonlinearity between."""

    def __init__(self, config: GPT2Config, c_fc: Linear, c_proj: Linear) -> None:
        super().__init__()
        self.c_fc = c_fc
        self.c_proj = c_proj
        self.activation = ACTIVATIONS[config.activation_function]

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.activation(self.c_fc(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """One layer: attention and MLP, each behind a LayerNorm and beside a residual connection."""

    def __init__(self, ln_1: LayerNorm, attn: Attention, ln_2: LayerNorm, mlp: MLP) -> None:
        super().__init__()
        self.ln_1, self.attn, self.ln_2, self.mlp = ln_1, attn, ln_2, mlp

    def forward(self, x: Tensor, step: _Step) -> Tensor:
        x = x + self.attn(self.ln_1(x), step)
        return x + self.mlp(self.ln_2(x))  # type: ignore[no-any-return]


class GPT2(nn.Module):
    """The decoder. `forward` gives hidden states, `logits` multiplies them by the head.

    The head is tied to the token embedding unless the matrices contain `lm_head`.
    """

    def __init__(self, config: GPT2Config, matrices: Mapping[str, Format], vectors: Mapping[str, Tensor]) -> None:
        """Assemble the model.

        Args:
            config: hyper-parameters.
            matrices: every matrix of `config.matrix_shapes()`, and optionally lm_head [V, D].
            vectors: every vector of `config.vector_shapes()`; kept in fp32.

        Raises:
            ValueError: if a matrix or vector is missing, unknown or misshapen.
        """
        super().__init__()
        self.config = config
        optional = {"lm_head": (config.vocab_size, config.n_embd)} if "lm_head" in matrices else {}
        _check_shapes("matrix", {n: m.shape for n, m in matrices.items()}, config.matrix_shapes() | optional)
        _check_shapes("vector", {n: tuple(v.shape) for n, v in vectors.items()}, config.vector_shapes())

        def linear(name: str) -> Linear:
            return Linear(matrices[name], vectors[f"{name}.bias"].float())

        def norm(name: str) -> LayerNorm:
            weight, bias = vectors[f"{name}.weight"].float(), vectors[f"{name}.bias"].float()
            return LayerNorm(weight, bias, config.layer_norm_epsilon)

        def block(i: int) -> Block:
            attn = Attention(config, i, linear(f"h.{i}.attn.c_attn"), linear(f"h.{i}.attn.c_proj"))
            mlp = MLP(config, linear(f"h.{i}.mlp.c_fc"), linear(f"h.{i}.mlp.c_proj"))
            return Block(norm(f"h.{i}.ln_1"), attn, norm(f"h.{i}.ln_2"), mlp)

        self.wte = matrices["wte"]
        self.wpe = matrices["wpe"]
        self.h = nn.ModuleList([block(i) for i in range(config.n_layer)])
        self.ln_f = norm("ln_f")
        self.lm_head = matrices.get("lm_head")

    def matrices(self) -> dict[str, Format]:
        """Return every matrix by name."""
        named: dict[str, Format] = {}
        outermost = "."
        for name, module in self.named_modules():
            if isinstance(module, Format) and not name.startswith(outermost):  # a format precedes those inside it
                named[name.removesuffix(".weight")] = module
                outermost = f"{name}."
        return named

    def vectors(self) -> dict[str, Tensor]:
        """Return every bias and LayerNorm vector by name, fp32."""
        return {name: self.get_parameter(name).detach() for name in self.config.vector_shapes()}

    def with_matrices(self, matrices: Mapping[str, Format]) -> "GPT2":
        """Return a model in which these matrices replace those of the same name."""
        return GPT2(self.config, self.matrices() | dict(matrices), self.vectors())

    def prepared(self) -> "GPT2":
        """Return the model in the form that is kept in memory to run; see `formats.prepared`."""
        return self.with_matrices({name: prepared(form) for name, form in self.matrices().items()})

    def trainable(self) -> "GPT2":
        """Return a copy whose matrices and vectors are all float parameters."""
        matrices = {name: form.trainable() for name, form in self.matrices().items()}
        copy = GPT2(self.config, matrices, {name: vector.clone() for name, vector in self.vectors().items()})
        return copy.requires_grad_(True)

    def sealed(self) -> "GPT2":
        """Return a trained copy as it is stored."""
        matrices = {name: form.sealed() for name, form in self.matrices().items()}
        return GPT2(self.config, matrices, {name: vector.clone() for name, vector in self.vectors().items()})

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        """Return an empty KV cache for `batch` rows of up to `capacity` tokens."""
        return KVCache(self.config, batch, capacity)

    def forward(self, ids: Tensor, cache: KVCache | None = None, counts: Tensor | None = None) -> Tensor:
        """Return the hidden states after the last LayerNorm [B, T, D].

        Args:
            ids: tokens [B, T], int64.
            cache: what came before; the new keys and values are added to it.
            counts: how many of the T tokens of each row are real [B]; the rest is padding on the
                right, whose hidden states mean nothing. All by default. Needs a cache.

        Raises:
            ValueError: if a row would grow past its capacity or the context.
        """
        b, t = ids.shape
        step = self._step(b, t, cache)
        x = self.wte.rows(ids) + self.wpe.rows(step.positions)  # [B, T, D]
        for block in self.h:
            x = block(x, step)
        if cache is not None:
            cache.lengths += t if counts is None else counts
        return self.ln_f(x)  # type: ignore[no-any-return]

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the scores of the next token [..., V] for hidden states [..., D]."""
        head = self.wte if self.lm_head is None else self.lm_head
        return head.matmul(hidden)

    def _step(self, b: int, t: int, cache: KVCache | None) -> _Step:
        start = torch.zeros(b, dtype=torch.int64) if cache is None else cache.lengths
        capacity = self.config.n_positions if cache is None else cache.capacity
        used = int(start.max()) + t
        if used > capacity:
            raise ValueError(f"{used} tokens exceed the capacity of {capacity}")
        positions = start.unsqueeze(1) + torch.arange(t)  # [B, T]
        if cache is None or (t > 1 and used == t):
            return _Step(positions, None, cache, used)
        mask = torch.arange(used) <= positions.unsqueeze(-1)  # [B, T, used]
        return _Step(positions, mask.unsqueeze(1), cache, used)


def _gelu_new(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu_new": _gelu_new, "gelu": F.gelu, "relu": F.relu}


def _check_shapes(kind: str, actual: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    if missing := expected.keys() - actual.keys():
        raise ValueError(f"{kind} {min(missing)} is missing")
    if unknown := actual.keys() - expected.keys():
        raise ValueError(f"{kind} {min(unknown)} is unknown")
    for name, shape in expected.items():
        if tuple(actual[name]) != shape:
            raise ValueError(f"{kind} {name} must have shape {list(shape)}, not {list(actual[name])}")
