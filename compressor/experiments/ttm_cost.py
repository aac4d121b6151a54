"""What the tensor-train layer keeps between forward and backward, and how long both take, beside autograd."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from compressor.pretraining.layers import TTMLayer
from compressor.pretraining.ttm import contracted, ttm_product

IN_FEATURES, OUT_FEATURES = 768, 3072
TOKENS = 16_384
RANKS = (16, 64)
ROUNDS = 3

Way = Callable[[Tensor, Sequence[Tensor]], Tensor]


def chained(x: Tensor, cores: Sequence[Tensor]) -> Tensor:
    """Return x W [B, out] by multiplying x [B, in] with one core after the other."""
    batch = x.shape[0]
    state = x.reshape(batch, 1, -1, 1)  # [B, outs so far, ins to come, r]
    for core in cores:
        mode = core.shape[1]
        split = state.reshape(batch, state.shape[1], mode, -1, core.shape[0])  # [B, O, i, I', r]
        state = torch.einsum("aoinr,rijs->aojns", split, core.to(x.dtype)).flatten(1, 2)  # [B, O j, I', s]
    return state.reshape(batch, -1)


WAYS: dict[str, Way] = {"ours": ttm_product, "chain": chained, "contraction": contracted}


def kept_bytes(way: Way, x: Tensor, cores: Sequence[Tensor]) -> dict[str, int]:
    """Return the bytes of all that one forward pass keeps for its backward pass, each storage counted once.

    Beside the sum ("all") stand x ("x") and the cores ("cores") where these are among them, and the rest ("other").
    """
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        # Held, so that no address is used twice; without its history, which would hold this function and so itself.
        kept[tensor.untyped_storage().data_ptr()] = tensor.detach()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = way(x, cores)
    sizes = {address: tensor.untyped_storage().nbytes() for address, tensor in kept.items()}
    total, own = sum(sizes.values()), sizes.pop(x.untyped_storage().data_ptr(), 0)
    of_cores = sum(sizes.pop(core.untyped_storage().data_ptr(), 0) for core in cores)
    del y
    return {"all": total, "x": own, "cores": of_cores, "other": sum(sizes.values())}


def measured(tokens: int = TOKENS, ranks: Sequence[int] = RANKS, rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """Return what every way costs at every rank: x in bf16, cores in fp32, ways in turns, medians over the rounds."""
    rows = []
    for rank in ranks:
        layer = TTMLayer(OUT_FEATURES, IN_FEATURES, rank, Generator().manual_seed(0))
        cores = list(layer.cores)
        x = torch.randn(tokens, IN_FEATURES, dtype=torch.bfloat16, requires_grad=True)
        memory = {name: kept_bytes(way, x, cores) for name, way in WAYS.items()}
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
        for _ in range(rounds):
            for name, way in WAYS.items():
                times[name].append(_seconds(way, x, cores))
        rows += [
            {
                "rank": rank,
                "way": name,
                "tokens": tokens,
                "kept": memory[name],
                "forward_ms": round(1e3 * statistics.median(t[0] for t in times[name]), 1),
                "backward_ms": round(1e3 * statistics.median(t[1] for t in times[name]), 1),
            }
            for name in WAYS
        ]
    return rows


def _seconds(way: Way, x: Tensor, cores: Sequence[Tensor]) -> tuple[float, float]:
    """Return how long the forward and the backward pass take."""
    gradient = torch.ones(x.shape[0], OUT_FEATURES, dtype=x.dtype)
    started = time.perf_counter()
    y = way(x, cores)
    between = time.perf_counter()
    torch.autograd.grad(y, [x, *cores], gradient)
    return between - started, time.perf_counter() - between
