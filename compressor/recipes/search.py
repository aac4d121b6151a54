"""The search for the forms that a budget buys: estimated for all, measured for those that are chosen.

1. Every candidate of every piece gets an estimate of its loss, see `compressor.recipes.sensitivity`. Statistics are
   those of one layer at a time.
2. What is chosen by these, and its rivals, are found, and the KL divergence of the dense model with only that piece
   replaced is measured. The measurement replaces the estimate, and scales those of the piece's other candidates that it
   is the nearest to. Then it is chosen anew, until nothing is chosen that was not measured.

A journal keeps every estimate, statistic and form, as soon as it is there.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from compressor import __version__
from compressor.formats import Dense, Format, Spec, from_tensors
from compressor.gpt2 import GPT2
from compressor.methods import METHODS
from compressor.methods.base import Statistics
from compressor.process.memory import give_back
from compressor.progress import Echo, Progress, ignore, silent
from compressor.recipes import calibrate, checkpoint, divergence, sensitivity
from compressor.recipes.divergence import UNUSABLE, Reference
from compressor.recipes.executor import IN_PROCESS, Executor
from compressor.recipes.journal import Journal
from compressor.recipes.pieces import Choice, Piece, assembled, candidates, pieces
from compressor.recipes.sensitivity import LEAST_KL, Gradients, Loss, estimated

Choices = Mapping[str, list[Choice]]  # by the piece's name
Choose = Callable[[Choices], Mapping[str, Choice]]
Task = tuple[Piece, Tensor, Statistics]

ROUNDS = 6
RIVAL_BYTES, RIVAL_KL = 1.4, 1.6  # how many times as many, or as few, bytes a rival has, and as much loss
PASSES = 25  # of the backward pass that the search takes as long as, or less
TOLD_MINUTES = 1  # from which on a user is told at once how long it takes


@dataclass(frozen=True)
class Found:
    """What a search ends with.

    Attributes:
        chosen: what was chosen of every piece, by its name; all of it was measured.
        matrices: in these forms, by name.
        choices: every candidate of every piece, its loss measured or corrected by measurements.
        measured: KL divergence from the dense model with all of them replaced, nats per token.
    """

    chosen: Mapping[str, Choice]
    matrices: Mapping[str, Format]
    choices: Choices
    measured: float

    @property
    def predicted(self) -> float:
        """The sum of the pieces' losses, nats per token."""
        return sum(choice.kl for choice in self.chosen.values())


@dataclass(frozen=True, kw_only=True)
class Search:
    """The candidates of a dense model.

    Attributes:
        dense: the model, see `GPT2.expanded`.
        ids: calibration text [rows, T].
        only: which matrices, by name, are searched.
        executor: where the tasks run; each is one piece.
        progress: progress callback, once per piece.
        echo: gets a line about how long it takes, if it is long, and about what was found before.
        journal: what it holds is not found again, and what is found is added.
    """

    dense: GPT2
    ids: Tensor
    only: Callable[[str], bool] = lambda name: True
    executor: Executor = IN_PROCESS
    progress: Progress = silent
    echo: Echo = ignore
    journal: Journal | None = None

    @cached_property
    def pieces(self) -> list[Piece]:
        """What the model is cut into."""
        return [p for name, form in self.dense.matrices().items() if self.only(name) for p in pieces(name, form.shape)]

    @cached_property
    def estimates(self) -> dict[str, list[Choice]]:
        """Every candidate of every piece, its loss estimated."""
        found = {piece.name: self._estimated_before(piece) for piece in self.pieces}
        if left := [piece for piece in self.pieces if not found[piece.name]]:
            if len(left) < len(self.pieces):
                self.echo(f"resumes: {len(self.pieces) - len(left)} of {len(self.pieces)} pieces were estimated before")
            started = time.perf_counter()
            known = sensitivity.gradients(self.dense, self.ids)
            self._tell((time.perf_counter() - started) * PASSES * len(left) / len(self.pieces) / 60)
            tasks = ((*task, self._losses(known, task[0], task[2])) for task in self._with_statistics(left))
            answers = self.executor.map(_estimated, tasks)
            for choices in self.progress(answers, label="Estimating candidates", total=len(left)):
                piece = choices[0].piece
                found[piece.name] = choices
                rows = [[c.method, dict(c.options), c.size_bytes, c.kl] for c in choices]
                self._keep(f"estimates-{piece.file_name}", {}, {"rows": rows})
        return found

    def found(self, choose: Choose) -> Found:
        """Return what `choose` takes of the candidates, once it knows what they lose."""
        forms: dict[tuple[str, str], Format] = {}
        measured: dict[str, dict[str, float]] = {piece.name: {} for piece in self.pieces}
        for _ in range(ROUNDS):
            known = self._corrected(measured)
            chosen = choose(known)
            wanted = [rival for name, choice in chosen.items() for rival in rivals(choice, known[name])]
            if not (new := [c for c in wanted if str(c) not in measured[c.piece.name]]):
                break
            answers = self.progress(self._measured(new), label="Measuring what is chosen", total=len(new))
            for choice, form, kl in answers:
                measured[choice.piece.name][str(choice)] = kl
                forms[choice.piece.name, str(choice)] = form
        else:
            known = self._corrected(measured)
            chosen = choose({name: [c for c in known[name] if str(c) in measured[name]] for name in known})
        taken = [(choice.piece, forms[name, str(choice)]) for name, choice in chosen.items()]
        matrices = assembled(taken)
        together = self._reference.kl(matrices)
        give_back()
        return Found(chosen, matrices, self._corrected(measured), together)

    @cached_property
    def _reference(self) -> Reference:
        return Reference.of(self.dense, self.ids)

    def _corrected(self, measured: Mapping[str, Mapping[str, float]]) -> dict[str, list[Choice]]:
        return {name: corrected(choices, measured[name]) for name, choices in self.estimates.items()}

    def _measured(self, choices: Iterable[Choice]) -> Iterator[tuple[Choice, Format, float]]:
        """Yield every choice with its form and its loss."""
        left: dict[str, list[Choice]] = {}
        for choice in choices:
            if (known := self._found_before(choice)) is not None:
                yield choice, *known
            else:
                left.setdefault(choice.piece.name, []).append(choice)
        wanted = self._with_statistics([choices[0].piece for choices in left.values()])
        tasks = ((choice, *known) for piece, *known in wanted for choice in left[piece.name])
        for choice, form in self.executor.map(_found, tasks):
            kl = self._reference.kl({choice.piece.matrix: self._beside_others(choice.piece, form)})
            self._keep(f"form-{choice.file_name}", form.tensors(), {"spec": form.spec().model_dump(), "kl": kl})
            yield choice, form, kl

    def _beside_others(self, piece: Piece, form: Format) -> Format:
        """Return a matrix of which one piece has another form."""
        if piece.whole:
            return form
        weight = self.dense.matrices()[piece.matrix].dense().clone()
        weight[piece.rows] = form.dense()
        return Dense.of(weight, "fp32")

    def _with_statistics(self, wanted: Iterable[Piece]) -> Iterator[Task]:
        """Yield every piece, its weight [out, in] and statistics, in the order in which these are there."""
        by_matrix: dict[str, list[Piece]] = {}
        for piece in wanted:
            by_matrix.setdefault(piece.matrix, []).append(piece)
        for name, statistics in self._statistics(by_matrix):
            weight = self.dense.matrices()[name].dense()
            for piece in by_matrix[name]:
                part = weight if piece.whole else weight[piece.rows].clone()
                yield piece, part, statistics.of_rows(piece.rows)
            give_back()  # what its tasks have used

    def _statistics(self, names: Iterable[str]) -> Iterator[tuple[str, Statistics]]:
        """Yield the statistics of matrices, first those that are kept."""
        missing = []
        for name in names:
            if (kept := self._kept(f"statistics-{name}")) is not None:
                yield name, Statistics(**kept[0], heads=kept[1]["heads"])
            else:
                missing.append(name)
        for name, found in calibrate.by_layer(self.dense, self.ids, missing):
            tensors = {key: value for key, value in vars(found).items() if isinstance(value, Tensor)}
            self._keep(f"statistics-{name}", tensors, {"heads": found.heads})
            yield name, found

    def _losses(self, known: Gradients, piece: Piece, statistics: Statistics) -> list[Loss]:
        rows = self.dense.matrices()[piece.matrix].shape[0]
        return [loss.of_rows(piece.rows) for loss in known.losses(piece.matrix, statistics, rows)]

    def _tell(self, minutes: float) -> None:
        if minutes > TOLD_MINUTES:
            self.echo(f"finding what the budget buys will take some {minutes:.0f} minutes or less")

    def _estimated_before(self, piece: Piece) -> list[Choice]:
        kept = self._kept(f"estimates-{piece.file_name}")
        return [Choice(piece, *row) for row in kept[1]["rows"]] if kept else []

    def _found_before(self, choice: Choice) -> tuple[Format, float] | None:
        if (kept := self._kept(f"form-{choice.file_name}")) is None:
            return None
        tensors, about = kept
        return from_tensors(tensors, Spec.model_validate(about["spec"])), about["kl"]

    def _kept(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        return None if self.journal is None else self.journal.read(name)

    def _keep(self, name: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        if self.journal is not None:
            self.journal.write(name, tensors, about)


def rivals(chosen: Choice, choices: Iterable[Choice]) -> list[Choice]:
    """Return what was chosen and the candidates of about its bytes that may lose less, since estimates err."""
    return [
        choice
        for choice in choices
        if 1 / RIVAL_BYTES < choice.size_bytes / chosen.size_bytes < RIVAL_BYTES and choice.kl <= RIVAL_KL * chosen.kl
    ]


def corrected(choices: list[Choice], measured: Mapping[str, float]) -> list[Choice]:
    """Return the candidates of a piece with losses as they were `measured`, and the others in proportion.

    A measurement says by how much estimates are wrong for candidates that lose about as much.
    """
    known = [choice for choice in choices if str(choice) in measured]
    if not known:
        return choices
    found = []
    for choice in choices:
        near = min(known, key=lambda other: abs(math.log(other.kl / choice.kl)))
        factor = max(measured[str(near)], LEAST_KL) / near.kl
        found.append(replace(choice, kl=measured.get(str(choice), min(choice.kl * factor, UNUSABLE))))
    return found


def identity(dense: GPT2, ids: Tensor) -> str:
    """Return the digest of all that decides about what is found, for a journal."""
    shapes = {name: form.shape for name, form in dense.matrices().items()}
    tried = {p.name: candidates(name, p.shape_in(shape)) for name, shape in shapes.items() for p in pieces(name, shape)}
    tokens = [divergence.MEASURED_TOKENS, divergence.DRAWN_TOKENS, sensitivity.SENSED_TOKENS, sensitivity.SAMPLED_ROWS]
    versions = {"ttgpt": __version__, "torch": torch.__version__}
    return checkpoint.digest(dense, ids, {"tried": tried, "tokens": tokens, "versions": versions})


def _estimated(task: tuple[Piece, Tensor, Statistics, list[Loss]]) -> list[Choice]:
    return estimated(*task)


@torch.inference_mode()
def _found(task: tuple[Choice, Tensor, Statistics]) -> tuple[Choice, Format]:
    choice, weight, statistics = task
    config = METHODS[choice.method].config(**choice.options)
    return choice, METHODS[choice.method].found(choice.piece.name, weight, config, statistics, silent)
