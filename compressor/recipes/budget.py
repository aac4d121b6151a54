"""One byte budget for the whole model: bytes are spent where they lower the loss most.

A model is cut into pieces: its matrices, and its token table once more by how frequent the tokens are. What every form
that a piece could take loses is estimated, and measured where it is chosen, see `compressor.recipes.search`.
"""

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, get_args

from compressor.codecs import codec_named
from compressor.errors import check_range
from compressor.gpt2 import GPT2
from compressor.methods.base import Target, is_target
from compressor.recipes.pieces import Choice

SCARCE = 12  # times smaller than fp32, from which on biases and norms are stored in 8 bits
SMALL_VECTORS = "int8"


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
        better = [other for other in frontier(measured[name]) if other.size_bytes > choice.size_bytes]
        row = {"piece": name, "choice": str(choice), "bytes": choice.size_bytes, "kl": choice.kl}
        if better:
            row |= {"next": str(better[0]), "kl_per_kb": 1000 * _slope(choice, better[0])}
        rows.append(row)
    return rows


def _slope(old: Choice, new: Choice) -> float:
    """Return how much KL a byte more saves."""
    return (old.kl - new.kl) / max(1, new.size_bytes - old.size_bytes)
