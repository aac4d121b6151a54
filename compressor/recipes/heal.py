"""Healing: KL distillation of a compressed model towards the dense one.

Everything that is stored is trained: factors, cores, codes (straight through their rounding), scales, norms and
biases. Nothing but the loss on text that is held back decides which state is kept.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from compressor.codecs import Scaled
from compressor.errors import check_range
from compressor.formats.base import blocks
from compressor.gpt2 import GPT2
from compressor.progress import Echo, Progress, ignore, silent
from compressor.recipes import checkpoint

MINUTES = 0.01, 10**6
HEAD_ROWS = 1024  # positions whose logits exist at a time
SELECTION_ROWS = 64
CHECKPOINT = "healing-{identity:.16}.safetensors"  # so that the runs of a folder do not meet
TIMED_STEPS = 4
PRECISIONS = ("auto", "fp32", "bf16")
CHECKPOINT_BYTES = 16  # per value: itself, the best one, and two moments
CALM = 0.5  # where few parameters are left to train: 48 steps at twice the rate gained nothing at 16x
SMALLEST_RMS = 1e-4  # a tensor of zeros must be able to leave them


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of healing.

    Attributes:
        tokens: how many are trained on, at most; 0, or enough for a step.
        batch: rows of `context` tokens per step.
        context: tokens per row; no more than the model's.
        learning_rate: how far a step moves a tensor, as a share of its root mean square, since factors and scales
            differ in size by orders of magnitude (Adafactor, arXiv 1804.04235, section 8); scales and zeros of
            low-bit codecs take a tenth of it, and all take half where codes of a trellis stay.
        warmup: share of the steps in which the rate rises; it then falls as a cosine to 1 % of itself.
        select_every: steps between measurements on the held-back text.
        patience: measurements without improvement after which it stops.
        minutes: that `tokens` were estimated from, if they were.
        seed: of the order of the text.
        precision: of the student's products while it is trained; "auto" is bf16 where the CPU multiplies it, else
            fp32. Parameters, targets, the loss and what selects a state are fp32 in any case, and so are the products
            of a model with a TT-matrix, whose rows are sums of long products.
    """

    tokens: int = 1_000_000
    batch: int = 8
    context: int = 256
    learning_rate: float = 1e-2
    warmup: float = 0.05
    select_every: int = 50
    patience: int = 10
    seed: int = 0
    precision: str = "auto"
    minutes: float | None = None

    def __post_init__(self) -> None:
        check_range("batch", self.batch, 1, 4096)
        check_range("context", self.context, 2, 65536)
        if self.tokens:  # else nothing is healed
            check_range("heal_tokens", self.tokens, self.batch * self.context, 10**12)
        check_range("learning_rate", self.learning_rate, 1e-8, 1.0)
        check_range("warmup", self.warmup, 0.0, 1.0)
        check_range("select_every", self.select_every, 1, 10**9)
        check_range("patience", self.patience, 1, 10**9)
        if self.minutes is not None:
            check_range("heal_minutes", self.minutes, *MINUTES)
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, not {self.precision!r}")

    @property
    def steps(self) -> int:
        """How many optimiser steps `tokens` are worth."""
        return self.tokens // (self.batch * self.context)

    @property
    def least_tokens(self) -> int:
        """How many tokens a text must have, with those that are held back."""
        return (self.batch + self.batch // 9 + 1) * self.context

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, as a share of `learning_rate`."""
        rise = max(1, round(self.warmup * self.steps))
        if step < rise:
            return (step + 1) / rise
        fall = (step - rise) / max(1, self.steps - rise)
        return 0.01 + 0.99 * 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * fall))))


@dataclass(frozen=True)
class Healed:
    """The outcome.

    Attributes:
        model: the best state, as it is stored.
        kl_before, kl_after: on the held-back text, nats per token.
        tokens: trained on.
    """

    model: GPT2
    kl_before: float
    kl_after: float
    tokens: int


def heal(
    model: GPT2,
    dense: GPT2,
    text: Tensor,
    config: Config,
    *,
    held_back: Tensor | None = None,
    frozen: Callable[[str], bool] = lambda name: False,
    folder: Path | None = None,
    progress: Progress = silent,
    echo: Echo = ignore,
) -> Healed:
    """Train a compressed model towards the dense one and return its best state.

    Args:
        model: what to heal, as stored.
        dense: the teacher, see `GPT2.expanded`.
        text: tokens [T].
        config: how.
        held_back: tokens [T] that select the state; by default the last tenth of `text`.
        frozen: which matrices and vectors, by name, stay bit for bit as they are; a bias stays if its matrix does.
        folder: where to keep a checkpoint; a run that finds its own there, of the same models, text and config, resumes
            it. Other runs' are left alone.
        progress: progress callback, once per step.
        echo: gets a line about a checkpoint that was found, or could not be written.

    Raises:
        ValueError: if the text is too short, the context too long, or the checkpoint damaged.
    """
    check_range("context", config.context, 2, model.config.n_positions)
    rows, selection = _split(_rows(text, config), held_back if held_back is None else _rows(held_back, config), config)
    training = _Training(model, dense, config, frozen)
    start = _start(model, dense, config, frozen)
    kept = None if folder is None else _Checkpoint(folder, start, checkpoint.digest(start, rows, selection), echo)
    first = training.resume(kept) if kept else 0
    if first == 0:
        training.select(selection)
    for step in progress(range(first, config.steps), label="Healing", total=config.steps - first):
        training.step(step, rows[_order(len(rows), config, step)])
        if (step + 1) % config.select_every == 0 or step + 1 == config.steps:
            training.select(selection)
            if kept:
                training.save(kept, step + 1)
            if training.stale >= config.patience:
                break
    return training.outcome(model, frozen)


def check_text(text: Tensor, config: Config) -> None:
    """Refuse a text [...] that is too short to train and select on; raises ValueError."""
    _split(_rows(text, config), None, config)


def tokens_in(model: GPT2, dense: GPT2, config: Config) -> int:
    """Return how many tokens can be healed on in `config.minutes` on this machine, by timing a few steps."""
    training = _Training(model, dense, replace(config, tokens=10**9), lambda name: False)
    random = torch.Generator().manual_seed(config.seed)
    ids = torch.randint(model.config.vocab_size, (config.batch, config.context), generator=random)
    seconds = []
    for step in range(TIMED_STEPS):
        started = time.perf_counter()
        training.step(step, ids)
        seconds.append(time.perf_counter() - started)
    return max(1, int(60 * (config.minutes or 0) / min(seconds))) * ids.numel()


def tokens_begun(
    folder: Path, model: GPT2, dense: GPT2, config: Config, frozen: Callable[[str], bool] = lambda name: False
) -> int | None:
    """Return on how many tokens an interrupted run for the same minutes was to train, or None without one.

    Raises:
        ValueError: if a checkpoint in `folder` is damaged.
    """
    start = _start(model, dense, config, frozen)
    for path in sorted(folder.glob(CHECKPOINT.format(identity="*"))):
        about = checkpoint.metadata(path)
        if about.get("start") == start:
            return int(about["tokens"])
    return None


def _start(model: GPT2, dense: GPT2, config: Config, frozen: Callable[[str], bool]) -> str:
    """Return the identity of a run but for its text; that follows from the tokens, which minutes stand for."""
    settings = asdict(config if config.minutes is None else replace(config, tokens=0))
    return checkpoint.digest(model, dense, settings, [name for name in model.matrices() if frozen(name)])


@dataclass(frozen=True)
class _Checkpoint:
    """Where a run keeps its state.

    Attributes:
        folder: of all runs' checkpoints.
        start: the run's identity but for the text.
        identity: all of it.
        echo: gets what a user should know, a line each.
    """

    folder: Path
    start: str
    identity: str
    echo: Echo

    @property
    def path(self) -> Path:
        """The run's own file."""
        return self.folder / CHECKPOINT.format(identity=self.identity)

    def write(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        """Write a checkpoint; where that fails, say so and keep the last one."""
        try:
            checkpoint.write(self.path, self.identity, tensors, about | {"start": self.start})
        except OSError as error:
            self.echo(f"checkpoint: cannot write {self.path} ({error.strerror}); {checkpoint.LOST}")

    def read(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the run's state, or None; raises ValueError."""
        found = checkpoint.read(self.path, self.identity)
        if found is not None:
            self.echo(f"resumes the healing in {self.path}: {found[1]['trained_tokens']:,} tokens are done")
        return found


def distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the summed KL divergence of logits [rows, V] from the teacher's, the same with any number of threads."""
    student, teacher = F.log_softmax(student, dim=-1), F.log_softmax(teacher, dim=-1)
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1).double().sum()


def distillation_gradient(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the derivative of `distillation_loss` by the student's logits [rows, V]: q - p."""
    return student.float().softmax(dim=-1).sub_(teacher.softmax(dim=-1))


def multiplies_bf16() -> bool:
    """Return whether this CPU has instructions for products of bf16, without which they are slower than fp32's."""
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


class _Training:
    """The student, its optimiser and the best state so far."""

    def __init__(self, model: GPT2, dense: GPT2, config: Config, frozen: Callable[[str], bool]) -> None:
        self.student = model.trainable()
        self.dense = dense
        self.config = config
        wanted = config.precision == "bf16" or (config.precision == "auto" and multiplies_bf16())
        self.is_bf16 = wanted and all(form.trains_in_bf16 for form in self.student.matrices().values())
        for name, form in self.student.matrices().items():
            if frozen(name):
                form.requires_grad_(False)
        for name in self.student.config.vector_shapes():
            if frozen(name.removesuffix(".bias")):  # a linear's bias goes with its matrix, a norm is for itself
                self.student.get_parameter(name).requires_grad_(False)
        named = {n: p for n, p in self.student.named_parameters() if p.requires_grad}
        if not named:
            raise ValueError("target leaves nothing that healing may change")
        calm = CALM if any(isinstance(module, Scaled) for module in self.student.modules()) else 1.0
        groups = [{"params": [p], "share": calm * _share(name, p)} for name, p in named.items()]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), weight_decay=0)
        self.parameters = named
        self.best = {name: p.detach().clone() for name, p in named.items()}
        self.history: list[float] = []
        self.stale = 0
        self.trained_tokens = 0

    def products(self) -> AbstractContextManager[object]:
        """Return the context in which the student multiplies."""
        return torch.autocast("cpu", dtype=torch.bfloat16) if self.is_bf16 else nullcontext()

    def step(self, step: int, ids: Tensor) -> None:
        """Train on rows of tokens [batch, context]."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["share"] * self.config.learning_rate * self.config.rate(step)
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            target = self.dense(ids).flatten(0, 1)  # [rows, D]
        with self.products():
            hidden = self.student(ids).flatten(0, 1)
        leaf = hidden.detach().requires_grad_()
        for block in blocks(len(leaf), HEAD_ROWS):
            part = slice(block.start, block.stop)
            with self.products():
                logits = self.student.logits(leaf[part])
            with torch.no_grad():
                gradient = distillation_gradient(logits, self.dense.logits(target[part])) / len(leaf)
            logits.backward(gradient.to(logits.dtype))
        hidden.backward(leaf.grad)
        torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), 1.0)
        self.optimizer.step()
        self.trained_tokens += ids.numel()

    @torch.no_grad()
    def select(self, held_back: Tensor) -> None:
        """Measure on the held-back rows and keep the state if it is the best."""
        total = 0.0
        for ids in held_back.split(self.config.batch):
            target, hidden = self.dense(ids).flatten(0, 1), self.student(ids).flatten(0, 1)
            for block in blocks(len(hidden), HEAD_ROWS):
                part = slice(block.start, block.stop)
                loss = distillation_loss(self.student.logits(hidden[part]), self.dense.logits(target[part]))
                total += float(loss)
        kl = total / held_back.numel()
        self.stale = 0 if kl < min(self.history, default=float("inf")) else self.stale + 1
        if self.stale == 0:
            self.best = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.history.append(kl)

    def outcome(self, model: GPT2, frozen: Callable[[str], bool]) -> Healed:
        """Return the best state, in which frozen matrices are the very ones of `model`."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(self.best[name])
        kept = {name: form for name, form in model.matrices().items() if frozen(name)}
        healed = self.student.quantized().with_matrices(kept)
        return Healed(healed, self.history[0], min(self.history), self.trained_tokens)

    def save(self, kept: _Checkpoint, step: int) -> None:
        """Write a checkpoint."""
        state = {f"now.{name}": p.detach() for name, p in self.parameters.items()}
        state |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        for name, parameter in self.parameters.items():
            for key in ("exp_avg", "exp_avg_sq"):
                state[f"{key}.{name}"] = self.optimizer.state[parameter][key]
        about = {
            "step": step,
            "stale": self.stale,
            "trained_tokens": self.trained_tokens,
            "history": self.history,
            "tokens": self.config.tokens,
        }
        kept.write(state, about)

    def resume(self, kept: _Checkpoint) -> int:
        """Restore the run's checkpoint, if any; return the step to continue with; raises ValueError."""
        found = kept.read()
        if found is None:
            return 0
        state, about = found
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state[f"now.{name}"])
                moments = {key: state[f"{key}.{name}"] for key in ("exp_avg", "exp_avg_sq")}
                self.optimizer.state[parameter] = {"step": torch.tensor(float(about["step"])), **moments}
        self.best = {name: state[f"best.{name}"] for name in self.parameters}
        self.history, self.stale, self.trained_tokens = about["history"], about["stale"], about["trained_tokens"]
        return int(about["step"])


def _share(name: str, parameter: Tensor) -> float:
    """Return how far a learning rate of 1 moves a parameter."""
    size = float(parameter.detach().square().mean().sqrt().clamp_min(SMALLEST_RMS))
    return 0.1 * size if name.rpartition(".")[2] in ("scale", "zero") else size


def _rows(text: Tensor, config: Config) -> Tensor:
    """Return text [T] as whole rows [N, context]."""
    text = text.flatten()
    return text[: len(text) // config.context * config.context].view(-1, config.context)


def _split(rows: Tensor, held_back: Tensor | None, config: Config) -> tuple[Tensor, Tensor]:
    """Return rows to train on and at most SELECTION_ROWS rows to select on."""
    need = config.least_tokens if held_back is None else config.batch * config.context
    if len(rows) * config.context < need:
        raise ValueError(f"text must have at least {need} tokens to heal on, not {len(rows) * config.context}")
    if held_back is None:
        held = min(SELECTION_ROWS, max(1, len(rows) // 10))
        rows, held_back = rows[:-held], rows[-held:]
    if not len(held_back):
        raise ValueError(f"text that is held back must have at least {config.context} tokens")
    return rows, held_back[:SELECTION_ROWS]


def _order(count: int, config: Config, step: int) -> Tensor:
    """Return which rows a step trains on: every row once per epoch, each epoch shuffled anew."""
    per_epoch = count // config.batch
    epoch, place = divmod(step, per_epoch)
    shuffled = torch.randperm(count, generator=torch.Generator().manual_seed(config.seed + 7919 * epoch))
    return shuffled[place * config.batch : (place + 1) * config.batch]
