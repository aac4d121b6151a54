"""What to pre-train, as one JSON file says it."""

import json
from math import cos, pi
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from compressor.artifact.gpt2_config import Activation, GPT2Config
from compressor.artifact.shapes import balanced_modes, max_tt_rank, ttm_modes
from compressor.codecs import codec_named
from compressor.errors import check_range

FOLDER = Path(__file__).parent
SHIPPED = {"gpt2-mini": FOLDER / "gpt2-mini.json"}  # recipes by the name of what they make
Kind = Literal["dense", "low_rank", "lpa", "ttm"]
TABLE_CORES = 3  # of a tensor-train embedding


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LayerSpec(_Strict):
    """How the matrices of one part are made.

    Attributes:
        kind: "dense"; "low_rank", two factors; "lpa", the same with the bias on the inner factor of q, k and v (for
            attention only); "ttm", a tensor-train matrix.
        rank: of all but dense.
        init: "published", or "gpt2": the matrix starts with GPT-2's spread, 0.02, smaller by 1 / sqrt(2 L) where it
            ends a residual branch, and its bias at 0. Dense ones and tables always do.
    """

    kind: Kind = "dense"
    rank: int | None = None
    init: Literal["published", "gpt2"] = "published"

    @model_validator(mode="after")
    def _has_a_rank_unless_dense(self) -> "LayerSpec":
        if (self.rank is None) != (self.kind == "dense"):
            raise ValueError(f"rank must be {'left out' if self.kind == 'dense' else 'given'} for {self.kind}")
        return self


class Phase(_Strict):
    """A stretch of the training.

    Attributes:
        until: share of the tokens at which it ends.
        context: tokens per row.
    """

    until: float = Field(gt=0, le=1)
    context: int = Field(ge=2, le=65536)


class Shape(_Strict):
    """The model's hyper-parameters under Hugging Face's names, see `compressor.gpt2.GPT2Config`."""

    vocab_size: int
    n_positions: int
    n_embd: int
    n_layer: int
    n_head: int
    n_inner: int | None = None
    activation_function: Activation = "gelu_new"


class Config(_Strict):
    """One pre-training.

    Attributes:
        model: the architecture.
        embedding, attention, mlp: how the matrices of each part are made.
        tokenizer: a tokenizer.json with model.vocab_size tokens, relative to the config file; "gpt2-mini" for the
            embedded one; null trains one on the text.
        tokens: to train on; whole steps are taken.
        batch_tokens: per step.
        phases: lengths of context, in order; the last one ends at 1.
        learning_rate: its highest value.
        warmup_steps: in which it rises.
        decay_from: share of the steps after which it falls, as a cosine.
        final_rate: share of learning_rate at the end.
        betas, weight_decay: AdamW's; decay is for everything of two dimensions or more.
        clip: the largest norm of all gradients.
        bf16: whether products are in bf16 (autocast).
        seed: of the initial weights and of the order of the text, which depends on nothing else.
        validate_every: steps between points of the validation curve.
        validation_tokens: of the held-out text, at most, for that curve.
        checkpoint_every: steps between checkpoints.
        codec: of the artefact, a floating-point one.
    """

    model: Shape
    embedding: LayerSpec = LayerSpec()
    attention: LayerSpec = LayerSpec()
    mlp: LayerSpec = LayerSpec()
    tokenizer: str | None = None
    tokens: int = Field(ge=1, le=10**12)
    batch_tokens: int = Field(default=8192, ge=2, le=2**24)
    phases: tuple[Phase, ...] = Field(min_length=1)
    learning_rate: float = Field(default=1.5e-3, gt=0, le=1)
    warmup_steps: int = Field(default=200, ge=1)
    decay_from: float = Field(default=0.1, ge=0, lt=1)
    final_rate: float = Field(default=0.05, ge=0, le=1)
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(default=0.1, ge=0, le=10)
    clip: float = Field(default=1.0, gt=0)
    bf16: bool = True
    seed: int = Field(default=0, ge=0, lt=2**31)
    validate_every: int = Field(default=100, ge=1)
    validation_tokens: int = Field(default=65536, ge=2)
    checkpoint_every: int = Field(default=100, ge=1)
    codec: str = "fp16"

    @model_validator(mode="after")
    def _fits_together(self) -> "Config":
        shape = self.decoder()  # the same checks as for every GPT-2
        if not codec_named(self.codec).is_float:
            raise ValueError(f"codec must be fp32, bf16 or fp16, not {self.codec!r}")
        for field, beta in zip(("betas[0]", "betas[1]"), self.betas, strict=True):
            check_range(field, beta, 0.0, 1.0 - 1e-9)
        ends = [phase.until for phase in self.phases]
        if ends != sorted(set(ends)) or ends[-1] != 1.0:
            raise ValueError(f"phases must end at ascending shares, the last at 1, not {ends}")
        for k, phase in enumerate(self.phases):
            check_range(f"phases[{k}].context", phase.context, 2, min(shape.n_positions, self.batch_tokens))
            if self.batch_tokens % phase.context:
                raise ValueError(f"batch_tokens must be a multiple of phases[{k}].context = {phase.context}")
        if self.steps < 1:
            raise ValueError(f"tokens must be at least batch_tokens = {self.batch_tokens}, not {self.tokens}")
        _check_forms(self, shape)
        return self

    @property
    def steps(self) -> int:
        """How many optimiser steps the tokens are worth."""
        return self.tokens // self.batch_tokens

    def decoder(self) -> GPT2Config:
        """Return the decoder's hyper-parameters; token 0 ends a text."""
        inner = self.model.n_inner or 4 * self.model.n_embd
        return GPT2Config(**(self.model.model_dump() | {"n_inner": inner, "eos_token_id": 0}))

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        rise = min(1.0, (step + 1) / self.warmup_steps)
        start = self.decay_from * self.steps
        fall = min(1.0, max(0.0, (step - start) / max(1.0, self.steps - start)))
        return self.learning_rate * rise * (self.final_rate + (1 - self.final_rate) * (1 + cos(pi * fall)) / 2)

    def phase(self, step: int) -> int:
        """Return the place in `phases` of a step, counted from 0."""
        return next(k for k, phase in enumerate(self.phases) if step < phase.until * self.steps)


def read_config(path: Path) -> Config:
    """Return the config in a JSON file; a relative tokenizer path is taken from the file's folder.

    Raises:
        ValueError: naming the file, the field and what is legal.
    """
    try:
        raw = json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"config: cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"config: {path} is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ValueError(f"config: {path} must be a JSON object")
    config = parse_config(raw, str(path))
    if config.tokenizer is None or config.tokenizer == "gpt2-mini":
        return config
    return config.model_copy(update={"tokenizer": str(path.parent / config.tokenizer)})


def parse_config(raw: dict[str, Any], name: str = "config") -> Config:
    """Return a config; raises ValueError naming the field and what is legal."""
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        given = f", not {first['input']!r}" if field and not isinstance(first["input"], dict) else ""
        raise ValueError(f"{name}: {f'{field}: ' if field else ''}{message}{given}") from error


def table_modes(vocab_size: int, width: int) -> tuple[list[int], list[int]]:
    """Return the (in_modes, out_modes) of a tensor-train embedding [V, D], whose padding is cropped."""
    return balanced_modes(width, TABLE_CORES), balanced_modes(vocab_size, TABLE_CORES)


def largest_ttm_rank(in_features: int, out_features: int) -> int:
    """Return the largest rank at which the published modes still have that many dimensions to span."""
    legal = (
        rank
        for rank in range(int((in_features * out_features) ** 0.5), 0, -1)
        if _spans(in_features, out_features, rank)
    )
    return next(legal)


def _spans(in_features: int, out_features: int, rank: int) -> bool:
    in_modes, out_modes = ttm_modes(in_features, out_features, rank)
    return max_tt_rank([i * o for i, o in zip(in_modes, out_modes, strict=True)]) >= rank


def _check_forms(config: Config, shape: GPT2Config) -> None:
    """Refuse kinds that a part cannot have, and ranks above what its matrices can use."""
    if config.embedding.kind == "lpa" or config.mlp.kind == "lpa":
        raise ValueError("kind lpa is for attention; use low_rank for the embedding and the mlp")
    if (rank := config.embedding.rank) is not None:
        vocabulary, width = shape.vocab_size, shape.n_embd
        most = min(vocabulary, width)
        if config.embedding.kind == "ttm":
            in_modes, out_modes = table_modes(vocabulary, width)
            most = max_tt_rank([i * o for i, o in zip(in_modes, out_modes, strict=True)])
        check_range("embedding.rank", rank, 1, most)
    for part, names in (("attention", ("attn.c_attn", "attn.c_proj")), ("mlp", ("mlp.c_fc", "mlp.c_proj"))):
        form = getattr(config, part)
        shapes = [shape.matrix_shapes()[f"h.0.{name}"] for name in names]
        if form.kind == "ttm":
            check_range(f"{part}.rank", form.rank, 1, min(largest_ttm_rank(i, o) for o, i in shapes))
        elif form.kind != "dense":
            check_range(f"{part}.rank", form.rank, 1, min(min(size) for size in shapes))
