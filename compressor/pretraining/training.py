"""The training loop: AdamW, a schedule, clipped gradients, a validation curve, and checkpoints to resume from."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from compressor.pretraining.config import Config
from compressor.pretraining.head import head_loss
from compressor.pretraining.model import head_matrix, initialised
from compressor.pretraining.text import Corpus, batch_of_step
from compressor.progress import Echo, ignore
from compressor.recipes import checkpoint

MOMENTS = ("exp_avg", "exp_avg_sq")
CHECKPOINT = "checkpoint.safetensors"
CHECKPOINT_BYTES = 12  # per parameter: itself and two moments


@dataclass(frozen=True)
class Point:
    """One point of the validation curve: the mean loss in nats per token after so many tokens."""

    tokens: int
    loss: float
    seconds: float


class Training:
    """A run: the model, its optimiser, and how far it has come.

    Attributes:
        model: being trained.
        step: how many steps are done.
        curve: the loss on the validation text.
        losses: the training loss of every step.
        seconds: spent in steps, over all sessions.
    """

    def __init__(self, config: Config, corpus: Corpus, folder: Path, echo: Echo = ignore) -> None:
        """Initialise the model, or resume from the checkpoint in `folder`.

        Args:
            config: what to train.
            corpus: on what.
            folder: of checkpoints; exists.
            echo: gets a line about checkpoints that could not be written.

        Raises:
            ValueError: if the checkpoint is damaged or belongs to another run.
        """
        self.config = config
        self.corpus = corpus
        self.folder = folder
        self.echo = echo
        self.model = initialised(config)
        self.named = dict(self.model.named_parameters())
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in self.named.values() if p.dim() >= 2], "weight_decay": config.weight_decay},
                {"params": [p for p in self.named.values() if p.dim() < 2], "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
            betas=config.betas,
            fused=True,
        )
        self.step = 0
        self.curve: list[Point] = []
        self.losses: list[float] = []
        self.seconds = 0.0
        self._resume()

    def run(self) -> Iterator[float]:
        """Train to the end; yields the loss of every step."""
        if not self.curve:
            self.measure()
        while self.step < self.config.steps:
            started = time.perf_counter()
            loss = self.train(*batch_of_step(self.config, self.corpus.training, self.step))
            self.seconds += time.perf_counter() - started
            self.losses.append(round(loss, 4))
            self.step += 1
            last = self.step == self.config.steps
            if last or self.step % self.config.validate_every == 0:
                self.measure()
            if last or self.step % self.config.checkpoint_every == 0:
                self.save()
            yield loss

    def train(self, ids: Tensor, targets: Tensor) -> float:
        """Take one step on inputs and targets [B, T]; return their loss before it."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.rate(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        with self._precision():
            hidden = self.model(ids).flatten(0, 1)  # [B T, D]
            loss = head_loss(hidden, head_matrix(self.model), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.named.values(), self.config.clip)
        self.optimizer.step()
        return float(loss.detach())

    @property
    def tokens(self) -> int:
        """How many tokens it has trained on."""
        return self.step * self.config.batch_tokens

    @torch.no_grad()
    def measure(self) -> None:
        """Add a point to the validation curve: whole contexts, each token but the first of a text predicted once."""
        ids, context = torch.from_numpy(self.corpus.validation.ids), self.model.config.n_positions
        count = min(len(ids) - 1, self.config.validation_tokens)
        total = 0.0
        for start in range(0, count, context):
            stop = min(start + context, count)
            with self._precision():
                hidden = self.model(ids[None, start:stop])[0]
                loss = head_loss(hidden, head_matrix(self.model), ids[start + 1 : stop + 1])
            total += float(loss) * (stop - start)
        self.curve.append(Point(self.tokens, round(total / count, 5), round(self.seconds, 1)))

    def save(self) -> None:
        """Write a checkpoint; where that fails, say so and keep the last one."""
        tensors = {f"now.{name}": parameter.detach() for name, parameter in self.named.items()}
        for name, parameter in self.named.items():
            state = self.optimizer.state[parameter]
            tensors |= {f"{moment}.{name}": state[moment] for moment in MOMENTS}
        about = {
            "tokenizer": self.corpus.tokenizer.to_str(),
            "step": self.step,
            "seconds": self.seconds,
            "losses": self.losses,
            "curve": [[point.tokens, point.loss, point.seconds] for point in self.curve],
        }
        where = self.folder / CHECKPOINT
        try:
            checkpoint.write(where, self._identity(), tensors, about)
        except OSError as error:
            self.echo(f"checkpoint: cannot write {where} at step {self.step} ({error.strerror}); {checkpoint.LOST}")

    def _resume(self) -> None:
        found = checkpoint.read(self.folder / CHECKPOINT, self._identity())
        if found is None:
            return
        tensors, about = found
        with torch.no_grad():
            for name, parameter in self.named.items():
                parameter.copy_(tensors[f"now.{name}"])
                moments = {moment: tensors[f"{moment}.{name}"] for moment in MOMENTS}
                self.optimizer.state[parameter] = {"step": torch.tensor(float(about["step"])), **moments}
        self.step, self.seconds, self.losses = about["step"], about["seconds"], about["losses"]
        self.curve = [Point(*values) for values in about["curve"]]

    def _identity(self) -> str:
        """Return the digest of what decides about the results of a run; the first model follows from the config."""
        config = self.config.model_dump(mode="json", exclude={"checkpoint_every"})
        corpus = self.corpus
        return checkpoint.digest(config, corpus.tokenizer.to_str(), corpus.sha256, corpus.validation.sha256)

    def _precision(self) -> torch.autocast:
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.config.bf16)
