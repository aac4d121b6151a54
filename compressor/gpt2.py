"""A lean GPT-2 decoder whose every matrix is a format. It trains, evaluates and serves.

The architecture is Radford et al., "Language Models are Unsupervised Multitask Learners" (2019), section
2.3; matrices are [out, in] and named as in Hugging Face's checkpoints without the `transformer.` prefix.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressor import native
from compressor.artifact.gpt2_config import Activation, GPT2Config
from compressor.codecs import Coded, codec_named
from compressor.formats import Dense, Format, Path, prepared
from compressor.kv_cache import KVCache
from compressor.runtime.model import Model

MOST_FP16 = torch.finfo(torch.float16).max  # beyond are infinities, which attention could not take back


@dataclass(frozen=True)
class _Step:
    """Where the new tokens of one forward pass stand; the same for all layers."""

    positions: Tensor  # [B, T], or the same for all [1, T]
    cache: KVCache | None
    slots: list[int]  # [B]
    used: list[int]  # tokens per row with the new ones, one per row of positions
    at: native.TokenPositions | None  # where the kernels attend

    @property
    def fresh(self) -> bool:
        """Whether nothing came before, so that attention needs no more than the new keys and values."""
        return self.cache is None or max(self.used) == self.positions.shape[1] > 1


class Linear(native.Accelerated):
    """y = x W^T + b."""

    def __init__(self, weight: Format, bias: Tensor) -> None:
        super().__init__()
        self.weight = weight
        self.bias = nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight.matmul(x) + self.bias

    @cached_property
    def kernel(self) -> "native.Matrix | None":
        """Weight and bias for the kernels, or None where they cannot multiply by it."""
        weight = self.weight.matrix.kernel if isinstance(self.weight, Dense) else None
        return None if weight is None else native.with_bias(weight, self.bias)

    def fused(
        self,
        x: Tensor,
        *,
        norm: "LayerNorm | None" = None,
        activation: Activation | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """Return residual + activation(self(norm(x))), in one pass where the kernels can."""
        known = activation is None or activation in native.ACTIVATIONS
        if self.kernel is not None and known and native.takes(x):
            before = None if norm is None else norm.kernel
            return native.linear(x, self.kernel, norm=before, activation=activation, residual=residual)
        y = self(x if norm is None else norm(x))
        y = y if activation is None else ACTIVATIONS[activation](y)
        return y if residual is None else residual + y


class LayerNorm(native.Accelerated):
    """LayerNorm over the last axis."""

    def __init__(self, weight: Tensor, bias: Tensor, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.epsilon = epsilon

    @cached_property
    def kernel(self) -> "native.Norm":
        """The same for the kernels."""
        return native.norm(self.weight, self.bias, self.epsilon)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.bias.shape, self.weight, self.bias, self.epsilon)


class Attention(nn.Module):
    """Causal multi-head self-attention; q, k and v are one fused matrix [3 D, D]."""

    def __init__(self, config: GPT2Config, layer: int, c_attn: Linear, c_proj: Linear) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.layer = layer
        self.scale = (config.n_embd // config.n_head) ** -0.5 if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            self.scale /= layer + 1
        self.c_attn = c_attn
        self.c_proj = c_proj

    def forward(self, x: Tensor, step: _Step) -> Tensor:
        return self.c_proj(self.attend(self.c_attn(x), step))  # type: ignore[no-any-return]

    def attend(self, qkv: Tensor, step: _Step) -> Tensor:
        """Return the heads' attention [B, T, D] for queries, keys and values [B, T, 3 D]."""
        cache = step.cache
        if cache is not None and step.at is not None:
            heads = native.attention(qkv.squeeze(1), cache.keys, cache.values, step.at, self.layer, self.scale)
            return heads.unsqueeze(1)
        b, t, width = qkv.shape
        heads = qkv.view(b, t, 3, self.n_head, width // (3 * self.n_head))  # [B, T, 3, H, D / H]
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # 3 x [B, H, T, D / H]
        if cache is not None:
            self._append(cache, step, k, v)
        if cache is None or step.fresh:
            y = self._attention(q, k, v)
        else:
            places = zip(step.slots, step.used, strict=True)
            pasts = [(cache.keys[self.layer, i, :, :n], cache.values[self.layer, i, :, :n]) for i, n in places]
            y = torch.cat([self._attention(q[b : b + 1], *past) for b, past in enumerate(pasts)])
        return y.transpose(1, 2).reshape(b, t, -1)

    def _append(self, cache: KVCache, step: _Step, keys: Tensor, values: Tensor) -> None:
        """Write keys and values [B, H, T, D / H] behind what their slots hold."""
        t = keys.shape[2]
        if cache.dtype is torch.float16:
            keys, values = keys.clamp(-MOST_FP16, MOST_FP16), values.clamp(-MOST_FP16, MOST_FP16)
        for b, (slot, used) in enumerate(zip(step.slots, step.used, strict=True)):
            cache.keys[self.layer, slot, :, used - t : used] = keys[b]
            cache.values[self.layer, slot, :, used - t : used] = values[b]

    def _attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the attention [B, H, T, D / H] of the last T tokens to all [(B,) H, used, D / H]."""
        t, used = q.shape[2], k.shape[-2]
        k, v = (x.to(q.dtype).view(q.shape[0], self.n_head, used, -1) for x in (k, v))
        mask = None if t in (1, used) else torch.ones(t, used, dtype=torch.bool).tril(used - t)
        causal = t == used > 1
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=self.scale)


class MLP(nn.Module):
    """Two linears with a nonlinearity between."""

    def __init__(self, config: GPT2Config, c_fc: Linear, c_proj: Linear) -> None:
        super().__init__()
        self.c_fc = c_fc
        self.c_proj = c_proj
        self.name = config.activation_function
        self.activation = ACTIVATIONS[self.name]

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.activation(self.c_fc(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """One layer: attention and MLP, each behind a LayerNorm and beside a residual connection."""

    def __init__(self, ln_1: LayerNorm, attn: Attention, ln_2: LayerNorm, mlp: MLP) -> None:
        super().__init__()
        self.ln_1, self.attn, self.ln_2, self.mlp = ln_1, attn, ln_2, mlp

    def forward(self, x: Tensor, step: _Step) -> Tensor:
        if step.cache is None:
            x = x + self.attn(self.ln_1(x), step)
            return x + self.mlp(self.ln_2(x))  # type: ignore[no-any-return]
        qkv = self.attn.c_attn.fused(x, norm=self.ln_1)
        x = self.attn.c_proj.fused(self.attn.attend(qkv, step), residual=x)
        inner = self.mlp.c_fc.fused(x, norm=self.ln_2, activation=self.mlp.name)
        return self.mlp.c_proj.fused(inner, residual=x)

    def for_kernels(self) -> "native.Block | None":
        """Return this block for `native.Stack`, or None where the kernels cannot multiply by all its matrices."""
        c_attn, c_proj = self.attn.c_attn.kernel, self.attn.c_proj.kernel
        c_fc, mlp_c_proj = self.mlp.c_fc.kernel, self.mlp.c_proj.kernel
        if c_attn is None or c_proj is None or c_fc is None or mlp_c_proj is None:
            return None
        return native.Block(
            ln_1=self.ln_1.kernel,
            c_attn=c_attn,
            c_proj=c_proj,
            ln_2=self.ln_2.kernel,
            c_fc=c_fc,
            mlp_c_proj=mlp_c_proj,
            scale=self.attn.scale,
        )


class GPT2(native.Accelerated):
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

    def prepared(self, path: Path | None = None) -> "GPT2":
        """Return the model in the form that is kept in memory to run; see `formats.prepared`.

        Args:
            path: how every matrix is multiplied; None as each says itself.
        """
        forms = {name: form if path is None else form.with_path(path) for name, form in self.matrices().items()}
        return self.with_vectors("fp32").with_matrices({name: prepared(form) for name, form in forms.items()})

    def decoder(self, threads: int | None = None) -> Model:
        """Return the model as it runs without torch, every matrix as it is stored; this one may then be freed.

        Args:
            threads: that compute; all cores that the process may use by default.
        """
        matrices = {name: form.as_stored() for name, form in self.matrices().items()}
        vectors = {name: native.array(vector.decode()) for name, vector in self._vectors.items()}
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

    def new_cache(self, rows: int, capacity: int, dtype: torch.dtype = torch.float32) -> KVCache:
        """Return an empty KV cache of `rows` slots of up to `capacity` tokens; raises ValueError."""
        config = self.config
        if not 1 <= capacity <= config.n_positions:
            raise ValueError(f"capacity must be between 1 and n_positions = {config.n_positions}, not {capacity}")
        size = config.n_embd // config.n_head
        return KVCache(
            layers=config.n_layer, slots=rows, heads=config.n_head, capacity=capacity, size=size, dtype=dtype
        )

    def forward(
        self, ids: Tensor, cache: KVCache | None = None, counts: Tensor | None = None, rows: Tensor | None = None
    ) -> Tensor:
        """Return the hidden states after the last LayerNorm [B, T, D].

        Args:
            ids: tokens [B, T], int64.
            cache: what came before; the new keys and values are added to it.
            counts: how many of the T tokens of each row are real [B]; the rest is padding on the
                right, whose hidden states mean nothing. All by default. Needs a cache.
            rows: the cache's slot of each row [B], all different; the first B by default.

        Raises:
            ValueError: if a row would grow past its capacity or the context.
        """
        b, t = ids.shape
        if cache is not None and self.packs(cache):
            slots = torch.arange(b) if rows is None else rows
            if counts is None:
                return self.packed(ids.reshape(-1), cache, slots, torch.full((b,), t)).view(b, t, -1)
            real = torch.arange(t) < counts.unsqueeze(1)  # [B, T]
            hidden = torch.zeros(b, t, self.config.n_embd)
            hidden[real] = self.packed(ids[real], cache, slots, counts)
            return hidden
        step = self._step(b, t, cache, rows)
        x = self.wte.rows(ids) + self.wpe.rows(step.positions)  # [B, T, D]
        for block in self.h:
            x = block(x, step)
        if cache is not None:
            cache.lengths[step.slots] += t if counts is None else counts
        return self.ln_f(x)  # type: ignore[no-any-return]

    def packed(self, ids: Tensor, cache: KVCache, rows: Tensor, counts: Tensor) -> Tensor:
        """Return the hidden states after the last LayerNorm [N, D] of tokens of several texts, one behind another.

        Law: every row is bitwise the same, whatever else is computed with it.

        Args:
            ids: tokens [N], int64: counts[0] of the first text, counts[1] of the second and so on.
            cache: what came before, for which `packs` is true; the new keys and values are added to it.
            rows: the cache's slot of each text [B], all different.
            counts: new tokens of each text [B]; their sum is N.

        Raises:
            ValueError: if a text would grow past the cache's capacity.
        """
        _check_rows(rows, cache)
        start = cache.lengths[rows]
        used = start + counts
        if (longest := int(used.max())) > cache.capacity:
            raise ValueError(f"{longest} tokens exceed the capacity of {cache.capacity}")
        first = start - (counts.cumsum(0) - counts)  # of each text, were all N tokens its own
        positions = torch.arange(len(ids)) + first.repeat_interleave(counts)
        x = self.wte.rows(ids) + self.wpe.rows(positions)  # [N, D]
        at = native.TokenPositions(rows.repeat_interleave(counts), positions)
        assert self.kernel is not None  # noqa: S101 - `packs` says so
        x = native.run(self.kernel, x, cache.keys, cache.values, at)
        cache.lengths[rows] = used
        return self.ln_f(x)  # type: ignore[no-any-return]

    def packs(self, cache: KVCache) -> bool:
        """Return whether one kernel runs all blocks: any tokens may then be computed together, bit for bit as alone.

        `forward` then spends nothing on padding. A model in training never does: its weights are not codes.
        """
        return native.attends(cache.keys.shape[-1]) and self.kernel is not None

    @cached_property
    def kernel(self) -> "native.Stack | None":
        """All blocks for the kernels, or None where these cannot run one of them."""
        if self.config.activation_function not in native.ACTIVATIONS:
            return None
        blocks = [kernel for block in self.h if (kernel := cast(Block, block).for_kernels()) is not None]
        return native.Stack(blocks, activation=self.config.activation_function) if len(blocks) == len(self.h) else None

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of the next token [..., V] for hidden states [..., D]."""
        return self.head.matmul(hidden)

    def _step(self, b: int, t: int, cache: KVCache | None, rows: Tensor | None = None) -> _Step:
        slots = torch.arange(b) if rows is None else rows.to(torch.int64).contiguous()
        if cache is not None:
            _check_rows(slots, cache)
        start = torch.zeros(1, dtype=torch.int64) if cache is None else cache.lengths[slots]
        capacity = self.config.n_positions if cache is None else cache.capacity
        longest = int(start.max())
        if longest + t > capacity:
            raise ValueError(f"{longest + t} tokens exceed the capacity of {capacity}")
        at = None
        if cache is not None and t == 1 and native.attends(cache.keys.shape[-1]):
            at = native.TokenPositions(slots, start)
        return _Step(start.unsqueeze(1) + torch.arange(t), cache, slots.tolist(), (start + t).tolist(), at)


def encoded(vectors: Mapping[str, Tensor], codec: str) -> dict[str, Coded]:
    """Return biases and LayerNorm vectors as `codec` stores them; raises ValueError, naming one that it cannot."""
    found = {}
    for name, vector in vectors.items():
        try:
            found[name] = Coded.encode(codec_named(codec), vector.clone())
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return found


def _check_rows(rows: Tensor, cache: KVCache) -> None:
    slots = rows.tolist()
    if min(slots) < 0 or max(slots) >= cache.slots:
        raise ValueError(f"rows must lie in [0, {cache.slots}), not {slots}")
    if len(set(slots)) < len(slots):
        raise ValueError(f"rows must be different, not {slots}")


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
