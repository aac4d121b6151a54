"""A lean GPT-2 decoder whose every matrix is a format. It is trained and measured; `compressor.runtime` serves.

The architecture is Radford et al., "Language Models are Unsupervised Multitask Learners" (2019), section
2.3; matrices are [out, in] and named as in Hugging Face's checkpoints without the `transformer.` prefix.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressor.artifact.gpt2_config import GPT2Config
from compressor.codecs import Coded, codec_named
from compressor.formats import Dense, Format
from compressor.runtime.model import Model
from compressor.tensors import array


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
        self.scale = (config.n_embd // config.n_head) ** -0.5 if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            self.scale /= layer + 1
        self.c_attn = c_attn
        self.c_proj = c_proj

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.attend(self.c_attn(x)))  # type: ignore[no-any-return]

    def attend(self, qkv: Tensor) -> Tensor:
        """Return the heads' attention [B, T, D] for queries, keys and values [B, T, 3 D]."""
        b, t, width = qkv.shape
        heads = qkv.view(b, t, 3, self.n_head, width // (3 * self.n_head))  # [B, T, 3, H, D / H]
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # 3 x [B, H, T, D / H]
        y = F.scaled_dot_product_attention(q, k, v, is_causal=t > 1, scale=self.scale)
        return y.transpose(1, 2).reshape(b, t, -1)


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

    def forward(self, x: Tensor) -> Tensor:
        return self.fed(self.attended(x))

    def attended(self, x: Tensor) -> Tensor:
        """Return the first half, which reads other tokens [B, T, D]."""
        return x + self.attn(self.ln_1(x))  # type: ignore[no-any-return]

    def fed(self, x: Tensor) -> Tensor:
        """Return the second half, of every token alone [B, T, D]."""
        return x + self.mlp(self.ln_2(x))  # type: ignore[no-any-return]


class GPT2(nn.Module):
    """The decoder. `forward` gives hidden states, `logits` multiplies them by the head.

    The head is tied to the token embedding unless the matrices contain `lm_head`.
    """

    def __init__(self, config: GPT2Config, matrices: Mapping[str, Format], vectors: Mapping[str, Coded]) -> None:
        """Assemble the model.

        Args:
            config: hyper-parameters.
            matrices: every matrix of `config.matrix_shapes()`, and optionally lm_head [V, D].
            vectors: every vector of `config.vector_shapes()`, all in one codec; multiplied in fp32.

        Raises:
            ValueError: if a matrix or vector is missing, unknown or misshapen, or vectors differ in their codecs.
        """
        super().__init__()
        self.config = config
        optional = {"lm_head": (config.vocab_size, config.n_embd)} if "lm_head" in matrices else {}
        _check_shapes("matrix", {n: m.shape for n, m in matrices.items()}, config.matrix_shapes() | optional)
        _check_shapes("vector", {n: v.shape for n, v in vectors.items()}, config.vector_shapes())

        if len(codecs := sorted({vector.codec.name for vector in vectors.values()})) > 1:
            raise ValueError(f"vectors must be stored by one codec, not {', '.join(codecs)}")
        self._vectors = dict(vectors)
        decoded = {name: vector.decode() for name, vector in vectors.items()}

        def linear(name: str) -> Linear:
            return Linear(matrices[name], decoded[f"{name}.bias"])

        def norm(name: str) -> LayerNorm:
            return LayerNorm(decoded[f"{name}.weight"], decoded[f"{name}.bias"], config.layer_norm_epsilon)

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

    def vectors(self) -> dict[str, Coded]:
        """Return every bias and LayerNorm vector by name, as it is stored."""
        return dict(self._vectors)

    @property
    def vector_codec(self) -> str:
        """What all biases and LayerNorm vectors are stored by."""
        return next(iter(self._vectors.values())).codec.name

    @property
    def head(self) -> Format:
        """The matrix [V, D] that hidden states are multiplied by."""
        return self.wte if self.lm_head is None else self.lm_head

    def with_matrices(self, matrices: Mapping[str, Format]) -> "GPT2":
        """Return a model in which these matrices replace those of the same name."""
        return GPT2(self.config, self.matrices() | dict(matrices), self.vectors())

    def with_vectors(self, codec: str) -> "GPT2":
        """Return the same model, whose vectors are stored by `codec`; raises ValueError, naming one that it cannot."""
        if codec == self.vector_codec:
            return self
        vectors = {name: vector.decode() for name, vector in self._vectors.items()}
        return GPT2(self.config, self.matrices(), encoded(vectors, codec))

    def expanded(self) -> "GPT2":
        """Return the model that torch multiplies by: every matrix dense and every vector, in fp32."""
        dense = {name: Dense.of(form.dense(), "fp32") for name, form in self.matrices().items()}
        return self.with_vectors("fp32").with_matrices(dense)

    def decoder(self, threads: int | None = None, activations: int = 16) -> Model:
        """Return the model as it runs without torch, every matrix as it is stored; this one may then be freed.

        Args:
            threads: that compute; all cores that the process may use by default.
            activations: bits of rounded rows, see `compressor.runtime.matrices.matrix_of`.
        """
        matrices = {
            name: form.as_stored(is_head=form is self.head, activations=activations)
            for name, form in self.matrices().items()
        }
        vectors = {name: array(vector.decode()) for name, vector in self._vectors.items()}
        return Model(self.config, matrices, vectors, threads)

    def trainable(self) -> "GPT2":
        """Return a copy whose matrices and vectors are all float parameters."""
        matrices = {name: form.trainable() for name, form in self.matrices().items()}
        copy = GPT2(self.config, matrices, self._vectors)
        for name in self._vectors:
            copy.get_parameter(name).data = copy.get_parameter(name).clone()  # fp32 is decoded to itself
        return copy.requires_grad_(True)

    def quantized(self) -> "GPT2":
        """Return a trained copy as it is stored."""
        matrices = {name: form.quantized() for name, form in self.matrices().items()}
        trained = {name: self.get_parameter(name).detach() for name in self._vectors}
        return GPT2(self.config, matrices, encoded(trained, self.vector_codec))

    def forward(self, ids: Tensor) -> Tensor:
        """Return the hidden states after the last LayerNorm [B, T, D] of tokens [B, T], int64; raises ValueError."""
        if (t := ids.shape[1]) > self.config.n_positions:
            raise ValueError(f"{t} tokens exceed the context of {self.config.n_positions}")
        x = self.embedded(ids)
        for block in self.h:
            x = block(x)
        return self.ln_f(x)  # type: ignore[no-any-return]

    def embedded(self, ids: Tensor) -> Tensor:
        """Return what the first layer reads [B, T, D]."""
        return self.wte.rows(ids) + self.wpe.rows(torch.arange(ids.shape[1]))

    def halves(self) -> list[Callable[[Tensor], Tensor]]:
        """Return the layers' halves in their order, 2 L functions of [B, T, D]."""
        return [half for block in self.h for half in (block.attended, block.fed)]  # type: ignore[misc]

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of the next token [..., V] for hidden states [..., D]."""
        return self.head.matmul(hidden)


def encoded(vectors: Mapping[str, Tensor], codec: str) -> dict[str, Coded]:
    """Return biases and LayerNorm vectors as `codec` stores them; raises ValueError, naming one that it cannot."""
    found = {}
    for name, vector in vectors.items():
        try:
            found[name] = Coded.encode(codec_named(codec), vector.clone())
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return found


def _gelu_new(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_new": _gelu_new,
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "quick_gelu": _quick_gelu,
}


def _check_shapes(kind: str, actual: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    if missing := expected.keys() - actual.keys():
        raise ValueError(f"{kind} {min(missing)} is missing")
    if unknown := actual.keys() - expected.keys():
        raise ValueError(f"{kind} {min(unknown)} is unknown")
    for name, shape in expected.items():
        if tuple(actual[name]) != shape:
            raise ValueError(f"{kind} {name} must have shape {list(shape)}, not {list(actual[name])}")
