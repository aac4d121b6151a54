"""One byte budget for the whole model: a format and a codec for every matrix, chosen by measured loss.

For every matrix, and every form it could take, the KL divergence from the dense model is measured with only that
matrix replaced. Bytes are then spent where they lower it most.
"""

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from joblib import Parallel, delayed
from torch import Tensor

from compressor.codecs import Coded, codec_named
from compressor.errors import check_range
from compressor.formats import Format
from compressor.formats.base import blocks
from compressor.gpt2 import GPT2
from compressor.heal import HEAD_ROWS, distillation_loss
from compressor.methods import METHODS
from compressor.methods.base import Statistics
from compressor.progress import Progress, silent

MEASURED_TOKENS = 2048  # on which one replaced matrix is measured
LINEAR_RANK_SHARES = (0.0625, 0.125)  # what comes below 2 bits a value
RANK_SHARES = (0.125, 0.1875, 0.25, 0.3125, 0.375, 0.4375, 0.5, 0.625)  # of the smaller side


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of `budget`; exactly one of the first three is set.

    Attributes:
        size_bytes: of model.safetensors, at most.
        ratio: of the dense model in fp32 to the result, at least.
        max_perplexity_ratio: to dense, at most; the smallest model that is predicted to keep it.
    """

    size_bytes: int | None = None
    ratio: float | None = None
    max_perplexity_ratio: float | None = None

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

    @property
    def is_small(self) -> bool:
        """Whether bytes are so scarce that even biases and norms are stored in 8 bits."""
        return self.ratio is not None and self.ratio >= 12


@dataclass(frozen=True)
class Preset:
    """A ratio to fp32, and the minutes of healing on 2 cores that it is worth."""

    ratio: float
    minutes: float


PRESETS = {
    "quality": Preset(3.9, 0),
    "balanced": Preset(8.0, 4),
    "small": Preset(16.0, 55),
    "tiny": Preset(38.4, 55),
}


@dataclass(frozen=True)
class Choice:
    """One form that a matrix could take.

    Attributes:
        name: of the matrix.
        method, options: that find it.
        size_bytes: it occupies.
        kl: from the dense model, nats per token, with only this matrix replaced.
        form: the matrix in that form.
    """

    name: str
    method: str
    options: Mapping[str, Any]
    size_bytes: int
    kl: float
    form: Format

    def __str__(self) -> str:
        options = " ".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.method} {options}"


def candidates(name: str, shape: tuple[int, int]) -> list[tuple[str, dict[str, Any]]]:
    """Return the methods and options that are tried for a matrix."""
    if name == "wpe":
        return [("quantize", {"codec": codec}) for codec in ("int8", "int4-row", "int3-row", "int2-row")]
    rounded = ["int8", "int4", "int4-row", "int3", "int3-row", "int2-g64", "int2-row"]
    found: list[tuple[str, dict[str, Any]]] = [("gptq", {"codec": codec}) for codec in rounded]
    is_table = name in ("wte", "lm_head")
    ranks = sorted({max(1, round(min(shape) * share)) for share in (RANK_SHARES if is_table else LINEAR_RANK_SHARES)})
    codecs = ("int4-row", "int3-row") if is_table else ("int4-row",)
    return found + [("whitened_svd", {"rank": rank, "codec": codec}) for rank in ranks for codec in codecs]


def measure(
    dense: GPT2,
    statistics: Mapping[str, Statistics],
    ids: Tensor,
    *,
    workers: int = 1,
    progress: Progress = silent,
) -> dict[str, list[Choice]]:
    """Return every candidate of every matrix with its bytes and its loss.

    Args:
        dense: the prepared dense model.
        statistics: of every matrix, see `calibrate.collect`.
        ids: calibration text [rows, T], of which the first MEASURED_TOKENS tokens are used.
        workers: joblib tasks at a time; each is one matrix.
        progress: told about matrices.
    """
    ids = ids[: max(1, MEASURED_TOKENS // ids.shape[1])]
    with torch.inference_mode():
        target = dense.logits(dense(ids).flatten(0, 1)).log_softmax(-1)  # [tokens, V]
    names = list(dense.matrices())
    tasks = (delayed(_measure_matrix)(dense, name, statistics.get(name), ids, target) for name in names)
    measured: Iterable[list[Choice]] = Parallel(n_jobs=workers, return_as="generator")(tasks)
    return dict(zip(names, progress(measured, label="Measuring matrices", total=len(names)), strict=True))


@torch.inference_mode()
def _measure_matrix(dense: GPT2, name: str, statistics: Statistics | None, ids: Tensor, target: Tensor) -> list[Choice]:
    weight = dense.matrices()[name].dense()
    found = []
    for method, options in candidates(name, (weight.shape[0], weight.shape[1])):
        config = METHODS[method].config(**options)
        form = METHODS[method].compress(weight, config, statistics, silent)
        found.append(Choice(name, method, options, form.num_bytes, _kl(dense, name, form, ids, target), form))
    return found


def _kl(dense: GPT2, name: str, form: Format, ids: Tensor, target: Tensor) -> float:
    """Return the mean KL divergence from `dense` of a model with one matrix replaced, nats per token."""
    model = dense.with_matrices({name: form.with_path("dense")}).prepared()
    hidden = model(ids).flatten(0, 1)
    total = 0.0
    for block in blocks(len(hidden), HEAD_ROWS):
        part = slice(block.start, block.stop)
        total += float(distillation_loss(model.logits(hidden[part]), target[part]))
    return max(total / len(hidden), 0.0)


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
    """Return the choice per matrix that a budget buys: the step that lowers KL most per byte comes first.

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
        if chosen[old.name] is old and new.size_bytes - old.size_bytes <= left:
            left -= new.size_bytes - old.size_bytes
            chosen[old.name] = new
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


def choose(measured: Mapping[str, list[Choice]], config: Config, dense: GPT2, vector_codec: str) -> dict[str, Choice]:
    """Return the choice per matrix that `config` asks for.

    Raises:
        ValueError: if nothing fits the budget.
    """
    if config.max_perplexity_ratio is not None:
        return smallest_within(measured, math.log(config.max_perplexity_ratio))
    size_bytes = config.size_bytes
    if config.ratio is not None:
        parameters = sum(form.out_features * form.in_features for form in dense.matrices().values())
        parameters += sum(vector.numel() for vector in dense.vectors().values())
        size_bytes = int(4 * parameters / config.ratio)
    return spend(measured, (size_bytes or 0) - vector_bytes(dense, vector_codec))


def vector_bytes(dense: GPT2, codec: str) -> int:
    """Return what biases and LayerNorm vectors occupy in a codec."""
    return sum(Coded.encode(codec_named(codec), v).num_bytes for v in dense.vectors().values())


def explain(measured: Mapping[str, list[Choice]], chosen: Mapping[str, Choice]) -> list[dict[str, Any]]:
    """Return one row per matrix: what was chosen, and what the next step up would have bought."""
    rows = []
    for name, choice in chosen.items():
        hull = frontier(measured[name])
        better = hull[hull.index(choice) + 1 :]
        row = {"matrix": name, "choice": str(choice), "bytes": choice.size_bytes, "kl": choice.kl}
        if better:
            row |= {"next": str(better[0]), "kl_per_kb": 1000 * _slope(choice, better[0])}
        rows.append(row)
    return rows


def _slope(old: Choice, new: Choice) -> float:
    """Return how much KL a byte more saves."""
    return (old.kl - new.kl) / max(1, new.size_bytes - old.size_bytes)
