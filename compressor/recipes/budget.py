"""One byte budget for the whole model: a format and a codec for every matrix, chosen by measured loss.

A model is cut into pieces: its matrices, and its token table once more by how frequent the tokens are. For every
piece, and every form it could take, the KL divergence from the dense model is measured with only that piece
replaced. Bytes are then spent where they lower it most.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any, get_args

import torch
from torch import Tensor

from compressor import __version__
from compressor.codecs import codec_named
from compressor.errors import check_range
from compressor.formats import Dense, Format, Stacked
from compressor.gpt2 import GPT2
from compressor.methods import METHODS
from compressor.methods.base import Statistics, Target, is_target
from compressor.progress import Echo, Progress, ignore, silent
from compressor.recipes import checkpoint
from compressor.recipes.executor import IN_PROCESS, Executor
from compressor.recipes.heal import HEAD_ROWS
from compressor.recipes.journal import Journal

MEASURED_TOKENS = 512  # on which one replaced piece is measured
DRAWN_TOKENS = 64  # of the vocabulary, whose logits stand for all
TOLD_MINUTES = 2  # from which on a user is told at once how long measuring takes
SCARCE = 12  # times smaller than fp32, from which on biases and norms are stored in 8 bits
SMALL_VECTORS = "int8"
UNUSABLE = 1e9  # nats per token, more than any model that can be served loses
CUT_ROWS = 4096  # a table with so many rows is cut into blocks
TABLE_BLOCKS = 6  # each twice as long as the one before, the first two alike
# Ranks, as shares of the smaller side, and codecs that `rotated_svd` is tried with.
TABLE_RANKS = {
    "tr1": (0.25, 0.375, 0.5),
    "tr2": (0.125, 0.1875, 0.25, 0.375, 0.5, 0.75, 1.0),
    "tr3": (0.375, 0.5, 0.75, 1.0),
    "tr4": (1.0,),
}
LINEAR_RANKS = {"tr2": (0.0625, 0.125, 0.25, 0.5), "tr3": (0.125, 0.25, 0.5)}
ROUNDED = ("int8", "tr4-h", "tr3-h", "tr2-h")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of `budget`; exactly one of the first three is set.

    Attributes:
        size_bytes: of all weights, at most.
        ratio: of the dense model in fp32 to the result, at least.
        max_perplexity_ratio: to dense, at most; the smallest model that is predicted to keep it.
        target: which matrices are compressed; the others stay as they are, and of bytes only those of the target
            (with biases and norms, if it is "all") count.
    """

    size_bytes: int | None = None
    ratio: float | None = None
    max_perplexity_ratio: float | None = None
    target: Target = "all"

    def __post_init__(self) -> None:
        given = [v for v in (self.size_bytes, self.ratio, self.max_perplexity_ratio) if v is not None]
        if len(given) != 1:
            raise ValueError("give exactly one of budget, ratio and max_perplexity_ratio")
        if self.size_bytes is not None:
            check_range("budget", self.size_bytes, 1, 10**15)
        if self.ratio is not None:
            check_range("ratio", self.ratio, 1.0, 1000.0)
        if self.max_perplexity_ratio is not None:
            check_range("max_perplexity_ratio", self.max_perplexity_ratio, 1.0, 1000.0)
        if self.target not in get_args(Target) or self.target == "none":
            legal = ", ".join(name for name in get_args(Target) if name != "none")
            raise ValueError(f"target must be one of {legal}, not {self.target!r}")

    def bytes_of(self, dense: GPT2) -> int | None:
        """Return how many bytes the target of a dense model may occupy, or None where a loss is the limit."""
        return int(dense_bytes(dense, self.target) / self.ratio) if self.ratio is not None else self.size_bytes


@dataclass(frozen=True)
class Preset:
    """A ratio to fp32, and on how many tokens it is healed."""

    ratio: float
    heal_tokens: int


PRESETS = {
    "quality": Preset(3.9, 0),
    "balanced": Preset(8.0, 0),
    "small": Preset(16.0, 600_000),
    "tiny": Preset(38.4, 1_800_000),
}


@dataclass(frozen=True)
class Piece:
    """What a form is chosen for: a matrix, or some rows of a table.

    Attributes:
        matrix: its name.
        rows: from which row to which.
        whole: whether these are all of them.
    """

    matrix: str
    rows: slice
    whole: bool

    @property
    def name(self) -> str:
        """The matrix, with its rows unless it is whole: wte[0:512]."""
        return self.matrix if self.whole else f"{self.matrix}[{self.rows.start}:{self.rows.stop}]"

    @property
    def file_name(self) -> str:
        """The same for every file system: wte-0-512."""
        return f"{self.matrix}-{self.rows.start}-{self.rows.stop}"

    def shape_in(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Return its own shape in a matrix of `shape`."""
        return self.rows.stop - self.rows.start, shape[1]


@dataclass(frozen=True)
class Choice:
    """One form that a piece could take.

    Attributes:
        piece: of the model.
        method, options: that find it.
        size_bytes: it occupies.
        kl: from the dense model, nats per token, with only this piece replaced.
        form: the piece in that form.
    """

    piece: Piece
    method: str
    options: Mapping[str, Any]
    size_bytes: int
    kl: float
    form: Format

    def __str__(self) -> str:
        options = " ".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.method} {options}"


def pieces(name: str, shape: tuple[int, int]) -> list[Piece]:
    """Return what a matrix is cut into.

    The tokens of a byte-level BPE are numbered in the order of their merges, so the frequent ones come first;
    a large token table is cut into blocks of doubling length, in which errors weigh less and less.
    """
    rows = shape[0]
    if name not in ("wte", "lm_head") or rows < CUT_ROWS:
        return [Piece(name, slice(0, rows), True)]
    cuts = [0, *(rows >> k for k in range(TABLE_BLOCKS - 1, 0, -1)), rows]
    return [Piece(name, slice(start, stop), False) for start, stop in itertools.pairwise(cuts)]


def candidates(name: str, shape: tuple[int, int]) -> list[tuple[str, dict[str, Any]]]:
    """Return the methods and options that are tried for a matrix, or for rows of it [out, in]."""
    if name == "wpe":
        return [("quantize", {"codec": codec}) for codec in ROUNDED]
    is_table = name in ("wte", "lm_head")
    rounded = ROUNDED if is_table else (*ROUNDED, "tr1-h")
    found: list[tuple[str, dict[str, Any]]] = [("gptq", {"codec": codec}) for codec in rounded]
    shares = (TABLE_RANKS if is_table else LINEAR_RANKS).items()
    low_rank = {(max(1, round(min(shape) * share)), codec) for codec, of in shares for share in of}
    # By their ranks, since those of one rank share a right factor.
    right = {"right_codec": "tr4-h" if is_table else "tr3-h"}
    return found + [("rotated_svd", {"rank": rank, "codec": codec} | right) for rank, codec in sorted(low_rank)]


@dataclass(frozen=True)
class Reference:
    """What the dense model makes of the measured text, so that a candidate is run from its own layer on.

    Attributes:
        ids: tokens [B, T].
        states: what every half of a layer reads, and what the last LayerNorm does [2 L + 1] of [B, T, D].
        drawn: tokens that stand for the next one's distribution p [B T, DRAWN_TOKENS]: its quantiles.
        logits: of these [B T, DRAWN_TOKENS].
    """

    ids: Tensor
    states: list[Tensor]
    drawn: Tensor
    logits: Tensor

    @classmethod
    @torch.inference_mode()
    def of(cls, dense: GPT2, ids: Tensor) -> "Reference":
        """Return that of the dense model and tokens [rows, T], of which the first MEASURED_TOKENS are used."""
        ids = ids[: max(1, MEASURED_TOKENS // ids.shape[1])]
        states = [dense.embedded(ids)]
        for half in dense.halves():
            states.append(half(states[-1]))
        quantiles = (torch.arange(DRAWN_TOKENS) + 0.5) / DRAWN_TOKENS
        drawn, logits = [], []
        for hidden in dense.ln_f(states[-1]).flatten(0, 1).split(HEAD_ROWS):
            found = dense.logits(hidden)  # [rows, V]
            chances = found.softmax(-1).cumsum(-1)
            drawn.append(torch.searchsorted(chances, chances[:, -1:] * quantiles))
            logits.append(found.gather(1, drawn[-1]))
        return cls(ids, states, torch.cat(drawn), torch.cat(logits))

    def kl(self, model: GPT2, name: str) -> float:
        """Return the mean KL divergence of a model in which the matrix `name` is replaced, nats per token.

        KL(p || q) = log E_p exp(d) - E_p d, where d is by how much a token's logit has changed. It is UNUSABLE where
        the model's logits are not finite.
        """
        first = _first_half(name, len(self.states) - 1)
        x = model.embedded(self.ids) if name in ("wte", "wpe") else self.states[first]
        for half in model.halves()[first:]:
            x = half(x)
        hidden = model.ln_f(x).flatten(0, 1).unsqueeze(-1)  # [B T, D, 1]
        rows = model.head.rows(self.drawn)  # [B T, DRAWN_TOKENS, D]
        change = ((rows @ hidden).squeeze(-1) - self.logits).double()
        each = change.logsumexp(-1) - math.log(DRAWN_TOKENS) - change.mean(-1)
        kl = float(each.mean())
        return max(kl, 0.0) if math.isfinite(kl) else UNUSABLE


def _first_half(name: str, halves: int) -> int:
    """Return the number of the half of a layer that multiplies by a matrix; `halves` for the head."""
    if name == "lm_head":
        return halves
    if not name.startswith("h."):
        return 0
    _, layer, part, _ = name.split(".")
    return 2 * int(layer) + (part == "mlp")


def measure(
    dense: GPT2,
    statistics: Callable[[], Mapping[str, Statistics]],
    ids: Tensor,
    *,
    only: Callable[[str], bool] = lambda name: True,
    executor: Executor = IN_PROCESS,
    progress: Progress = silent,
    echo: Echo = ignore,
    journal: Journal | None = None,
) -> dict[str, list[Choice]]:
    """Return every candidate of every piece, by the piece's name, with its bytes and its loss.

    Args:
        dense: the dense model, see `GPT2.expanded`.
        statistics: gives those of every matrix, see `calibrate.collect`; called only if something is to be measured.
        ids: calibration text [rows, T].
        only: which matrices, by name, are measured.
        executor: where the tasks run; each is one piece.
        progress: progress callback, once per candidate.
        echo: gets a line about how long it takes, if it is long, and about what was measured before.
        journal: what it holds is not measured again, and what is measured is added.
    """
    shapes = {name: form.shape for name, form in dense.matrices().items() if only(name)}
    cut = [piece for name, shape in shapes.items() for piece in pieces(name, shape)]
    found = {piece.name: _remembered(piece, journal) for piece in cut}
    if not (left := [piece for piece in cut if not found[piece.name]]):
        return found
    if len(left) < len(cut):
        echo(f"resumes: {len(cut) - len(left)} of {len(cut)} pieces were measured before")
    known, started = statistics(), time.perf_counter()
    reference = Reference.of(dense, ids)
    total = sum(len(candidates(piece.matrix, piece.shape_in(shapes[piece.matrix]))) for piece in left)
    if (minutes := (time.perf_counter() - started) * total / 60) > TOLD_MINUTES:
        echo(f"measuring the candidates will take some {minutes:.0f} minutes or less")
    task = partial(_measure_piece if executor.in_process else _measure_whole_piece, dense, reference)
    measured = zip(left, executor.map(task, left, [known.get(piece.matrix) for piece in left]), strict=True)
    for choice in progress(_flowing(measured, journal), label="Measuring matrices", total=total):
        found[choice.piece.name].append(choice)
    return found


def _remembered(piece: Piece, journal: Journal | None) -> list[Choice]:
    """Return the candidates that a journal holds of a piece, or none."""
    rows = journal.read(piece.file_name) if journal is not None else None
    return [Choice(piece, row["method"], row["options"], form.num_bytes, row["kl"], form) for row, form in rows or ()]


def _flowing(measured: Iterable[tuple[Piece, Iterable[Choice]]], journal: Journal | None) -> Iterator[Choice]:
    """Yield every candidate as it is measured; whole pieces go into the journal."""
    for piece, choices in measured:
        rows = []
        for choice in choices:
            rows.append(({"method": choice.method, "options": dict(choice.options), "kl": choice.kl}, choice.form))
            yield choice
        if journal is not None and not journal.write(piece.file_name, rows):
            journal = None


def identity(dense: GPT2, ids: Tensor) -> str:
    """Return the digest of all that decides about what is measured, for a journal."""
    shapes = {name: form.shape for name, form in dense.matrices().items()}
    tried = {p.name: candidates(name, p.shape_in(shape)) for name, shape in shapes.items() for p in pieces(name, shape)}
    versions = {"ttgpt": __version__, "torch": torch.__version__}
    return checkpoint.digest(
        dense, ids, {"tried": tried, "tokens": [MEASURED_TOKENS, DRAWN_TOKENS], "versions": versions}
    )


def _measure_whole_piece(
    dense: GPT2, reference: Reference, piece: Piece, statistics: Statistics | None
) -> list[Choice]:
    return list(_measure_piece(dense, reference, piece, statistics))


@torch.inference_mode()
def _measure_piece(dense: GPT2, reference: Reference, piece: Piece, statistics: Statistics | None) -> Iterator[Choice]:
    """Yield the candidates of a piece."""
    weight = dense.matrices()[piece.matrix].dense()
    part = weight[piece.rows]
    if statistics is not None and statistics.row_weights is not None:
        statistics = replace(statistics, row_weights=statistics.row_weights[piece.rows])
    for method, options in candidates(piece.matrix, (part.shape[0], part.shape[1])):
        form = METHODS[method].found(piece.name, part, METHODS[method].config(**options), statistics, silent)
        replaced = torch.cat([weight[: piece.rows.start], form.dense(), weight[piece.rows.stop :]])
        model = dense.with_matrices({piece.matrix: Dense.of(replaced, "fp32")})
        yield Choice(piece, method, options, form.num_bytes, reference.kl(model, piece.matrix), form)


def assembled(chosen: Iterable[Choice]) -> dict[str, Format]:
    """Return the matrices that the choices of all their pieces make, by name."""
    forms: dict[str, list[Format]] = {}
    for choice in sorted(chosen, key=lambda c: (c.piece.matrix, c.piece.rows.start)):
        forms.setdefault(choice.piece.matrix, []).append(choice.form)
    return {name: parts[0] if len(parts) == 1 else Stacked.of(parts) for name, parts in forms.items()}


def frontier(choices: Iterable[Choice]) -> list[Choice]:
    """Return the lower convex hull of loss over bytes, from the smallest to the best."""
    hull: list[Choice] = []
    for choice in sorted(choices, key=lambda c: (c.size_bytes, c.kl)):
        if hull and choice.kl >= hull[-1].kl:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-2], choice):
            hull.pop()
        hull.append(choice)
    return hull


def spend(measured: Mapping[str, list[Choice]], size_bytes: int) -> dict[str, Choice]:
    """Return the choice per piece that a budget buys: the step that lowers KL most per byte comes first.

    Raises:
        ValueError: if even the smallest forms do not fit, naming what they need.
    """
    hulls = {name: frontier(choices) for name, choices in measured.items()}
    chosen = {name: hull[0] for name, hull in hulls.items()}
    left = size_bytes - sum(choice.size_bytes for choice in chosen.values())
    if left < 0:
        raise ValueError(f"budget must be at least {size_bytes - left} bytes for the matrices, not {size_bytes}")
    steps = [pair for hull in hulls.values() for pair in itertools.pairwise(hull)]
    for old, new in sorted(steps, key=lambda pair: -_slope(*pair)):
        # A hull's steps come in order, so `old` is what is chosen unless an earlier step did not fit.
        if chosen[old.piece.name] is old and new.size_bytes - old.size_bytes <= left:
            left -= new.size_bytes - old.size_bytes
            chosen[old.piece.name] = new
    return chosen


def smallest_within(measured: Mapping[str, list[Choice]], kl: float) -> dict[str, Choice]:
    """Return the fewest bytes whose summed losses stay below `kl`, as `spend` would buy them."""
    low = sum(frontier(choices)[0].size_bytes for choices in measured.values())
    high = sum(frontier(choices)[-1].size_bytes for choices in measured.values())
    while high - low > 1024:
        middle = (low + high) // 2
        total = sum(choice.kl for choice in spend(measured, middle).values())
        low, high = (low, middle) if total <= kl else (middle, high)
    return spend(measured, high)


def choose(measured: Mapping[str, list[Choice]], config: Config, dense: GPT2) -> tuple[dict[str, Choice], str]:
    """Return the choice per piece that `config` asks for, and the codec of biases and LayerNorm vectors.

    What is bought depends on the bytes alone, however they were asked for. Where they are scarce, or nothing fits
    otherwise, vectors are stored in 8 bits.

    Raises:
        ValueError: if nothing fits the budget, naming the smallest one that is kept.
    """
    codec = dense.vector_codec
    if (size_bytes := config.bytes_of(dense)) is None:
        return smallest_within(measured, math.log(config.max_perplexity_ratio or 1.0)), codec
    if config.target != "all":
        _check_size(config, size_bytes, smallest(measured), dense)
        return spend(measured, size_bytes), codec
    least = smallest(measured)
    if size_bytes * SCARCE <= dense_bytes(dense, "all") or least + vector_bytes(dense, codec) > size_bytes:
        codec = min(codec, SMALL_VECTORS, key=partial(vector_bytes, dense))
    others = vector_bytes(dense, codec)
    _check_size(config, size_bytes, least + others, dense)
    return spend(measured, size_bytes - others), codec


def smallest(measured: Mapping[str, list[Choice]]) -> int:
    """Return the bytes of the smallest choice of every piece."""
    return sum(min(choice.size_bytes for choice in choices) for choices in measured.values())


def _check_size(config: Config, size_bytes: int, least: int, dense: GPT2) -> None:
    """Refuse a budget below `least` bytes, in the words in which it was asked for; raises ValueError."""
    if size_bytes >= least:
        return
    if config.ratio is None:
        raise ValueError(f"budget must be at least {least} bytes, not {size_bytes}")
    whole = dense_bytes(dense, config.target)
    cents = 100 * whole // least
    most = (cents if int(whole / (cents / 100)) >= least else cents - 1) / 100  # which divides to `least` or more
    raise ValueError(f"ratio must be at most {most} ({least} bytes) for this model, not {config.ratio}")


def dense_bytes(dense: GPT2, target: Target) -> int:
    """Return what the matrices of a target occupy in fp32, with biases and norms if it is "all"."""
    forms = [form for name, form in dense.matrices().items() if is_target(name, target)]
    values = sum(form.out_features * form.in_features for form in forms)
    if target == "all":
        values += sum(prod(vector.shape) for vector in dense.vectors().values())
    return 4 * values


def vector_bytes(dense: GPT2, codec: str) -> int:
    """Return what biases and LayerNorm vectors occupy in a codec."""
    return sum(codec_named(codec).num_bytes(vector.shape) for vector in dense.vectors().values())


def explain(measured: Mapping[str, list[Choice]], chosen: Mapping[str, Choice]) -> list[dict[str, Any]]:
    """Return one row per piece: what was chosen, and what the next step up would have bought."""
    rows = []
    for name, choice in chosen.items():
        hull = frontier(measured[name])
        better = hull[hull.index(choice) + 1 :]
        row = {"piece": name, "choice": str(choice), "bytes": choice.size_bytes, "kl": choice.kl}
        if better:
            row |= {"next": str(better[0]), "kl_per_kb": 1000 * _slope(choice, better[0])}
        rows.append(row)
    return rows


def _slope(old: Choice, new: Choice) -> float:
    """Return how much KL a byte more saves."""
    return (old.kl - new.kl) / max(1, new.size_bytes - old.size_bytes)
