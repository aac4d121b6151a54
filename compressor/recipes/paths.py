"""How each matrix is multiplied: measured where the model is made, written into the artefact, never guessed at load."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from compressor.errors import check_range
from compressor.formats import Format, Path, prepared, resident_bytes
from compressor.gpt2 import GPT2

PATHS: tuple[Path, ...] = ("stored", "factors", "dense")
BATCHES = (1, 8)  # rows of a decode step
REPEATS = 9
SLOW_SECONDS = 0.1  # of a product that is repeated only once
GAIN = 1.25  # how many times faster a path must be to deserve more memory; also hides the clock's noise


@dataclass(frozen=True)
class Cost:
    """What one way to multiply a matrix costs.

    Attributes:
        path: the way.
        seconds: per product with one row, and with eight, a row; added up.
        resident: bytes in memory.
    """

    path: Path
    seconds: float
    resident: int


def measured(model: GPT2, memory_limit: int | None = None) -> GPT2:
    """Return the same model, each matrix along the fastest path that the memory allows.

    A path that occupies more memory is taken only if it is GAIN times faster, and never if it occupies more than the
    dense matrix in fp32. Matrices of the same format are measured once. Rows looked up do not count.

    Args:
        model: as stored.
        memory_limit: bytes that all matrices together may occupy; where the fastest paths exceed it, those go first
            that save the most bytes for the time they cost.

    Raises:
        ValueError: if no paths keep the limit.
    """
    check_limit(model, memory_limit)
    known: dict[str, list[Cost]] = {}
    options = {}
    for name, form in model.matrices().items():
        key = form.spec().model_copy(update={"path": "stored"}).model_dump_json()
        if key not in known:
            known[key] = costs(form)
        options[name] = known[key]
    chosen = {name: _best(found) for name, found in options.items()}
    limit = inf if memory_limit is None else memory_limit
    while sum(cost.resident for cost in chosen.values()) > limit:
        steps = [(name, cost) for name, found in options.items() for cost in _smaller(found, chosen[name])]
        name, cost = min(steps, key=lambda step: _loss(chosen[step[0]], step[1]))
        chosen[name] = cost
    return model.with_matrices({name: form.with_path(chosen[name].path) for name, form in model.matrices().items()})


def check_limit(model: GPT2, memory_limit: int | None) -> None:
    """Refuse a limit that the matrices of `model` exceed along any paths; raises ValueError with what they need."""
    least = sum(min(resident_bytes(way) for way in _ways(form)) for form in model.matrices().values())
    if memory_limit is not None:
        check_range("memory_limit", memory_limit, least, 10**15)


def _ways(form: Format) -> list[Format]:
    """Return `form` along every path that occupies no more than W in fp32."""
    ways = [form.with_path(path) for path in PATHS]
    return [way for way in ways if resident_bytes(way) <= 4 * form.out_features * form.in_features] or ways[-1:]


@torch.inference_mode()
def costs(form: Format) -> list[Cost]:
    """Return what every path costs that occupies no more than W in fp32, smallest first.

    The paths take turns, and the fastest turn of each counts, so that whatever else runs slows down none of them alone.
    """
    ways = _ways(form)
    ready = {way.path: prepared(way) for way in ways}
    seconds = dict.fromkeys(ready, 0.0)
    for rows in BATCHES:
        x = torch.randn(rows, form.in_features, generator=torch.Generator().manual_seed(0))
        for path, best in _fastest(ready, x).items():
            seconds[path] += best / rows
    found = [Cost(way.path, seconds[way.path], resident_bytes(way)) for way in ways]
    return sorted(found, key=lambda cost: cost.resident)


def _fastest(ready: Mapping[Path, Format], x: Tensor) -> dict[Path, float]:
    """Return the seconds of the fastest product with x by path."""
    best = {path: _timed(form, x) for path, form in ready.items()}  # with plans and buffers still to be made
    slow = {path for path, seconds in best.items() if seconds >= SLOW_SECONDS}
    for turn in range(REPEATS):
        for path, form in ready.items():
            if path in slow and turn:
                continue
            seconds = _timed(form, x)
            best[path] = seconds if turn == 0 else min(best[path], seconds)
    return best


def _timed(form: Format, x: Tensor) -> float:
    start = time.perf_counter()
    form.matmul(x)
    return time.perf_counter() - start


def _best(found: Iterable[Cost]) -> Cost:
    first, *rest = found
    for cost in rest:
        first = cost if cost.seconds * GAIN < first.seconds else first
    return first


def _smaller(found: list[Cost], than: Cost) -> list[Cost]:
    return [cost for cost in found if cost.resident < than.resident]


def _loss(now: Cost, then: Cost) -> float:
    """Return the seconds lost per byte saved."""
    return (then.seconds - now.seconds) / (now.resident - then.resident)
