"""The linear layers that are trained from scratch: dense, low-rank, LPA's fused attention, and tensor-train.

Each maps [..., in] to [..., out] and turns into a format and a bias when it is quantized. All are drawn from a
generator, so that a seed gives the same layer everywhere. `spread` is the standard deviation of W's entries at the
start, whose bias then is 0; None leaves that to the paper.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import prod, sqrt

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from compressor.artifact.shapes import left_capped_ranks, ttm_modes
from compressor.formats import Dense, Format, LowRank, Stacked, TTMatrix
from compressor.pretraining.ttm import ttm_product

SPREAD = 0.02  # standard deviation of GPT-2's weights at the start


class Layer(nn.Module, ABC):
    """y = x W^T + b, to be trained."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Return y [..., out] for x [..., in]."""

    @abstractmethod
    def quantized(self) -> tuple[Format, Tensor]:
        """Return W in fp32 and b [out]."""


class DenseLayer(Layer):
    """W itself. GPT-2's initialisation: N(0, 0.02), and biases of 0."""

    def __init__(self, out_features: int, in_features: int, random: Generator, spread: float = SPREAD) -> None:
        super().__init__()
        self.weight = nn.Parameter(spread * torch.randn(out_features, in_features, generator=random))
        self.bias = nn.Parameter(torch.zeros(out_features))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def quantized(self) -> tuple[Format, Tensor]:
        return Dense.of(self.weight.detach(), "fp32"), self.bias.detach()


class LowRankLayer(Layer):
    """B (A x) + b: A [r, in], B [out, r], nothing between, b on B, initialised as torch's Linear is.

    Reference: arXiv 2411.02063, section 3 (its output matrix, and its controls in the FFN).
    """

    def __init__(
        self, out_features: int, in_features: int, rank: int, random: Generator, spread: float | None = None
    ) -> None:
        super().__init__()
        self.down = nn.Parameter(_inner((rank, in_features), in_features, random, spread))
        self.up = nn.Parameter(_outer((out_features, rank), in_features, random, spread))
        self.bias = nn.Parameter(_bias(out_features, rank, random, spread))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.down), self.up, self.bias)

    def quantized(self) -> tuple[Format, Tensor]:
        return LowRank.of(self.up.detach(), self.down.detach(), "fp32"), self.bias.detach()


class ProjectedQKV(Layer):
    """LPA's query, key and value as one layer: each is B (A x + a), the bias a [r] standing on A.

    The three A's are multiplied as one matrix [3 r, D]. Sealed, a becomes B a, the bias that a decoder expects.

    Reference: arXiv 2411.02063, section 3.
    """

    def __init__(self, width: int, rank: int, random: Generator, spread: float | None = None) -> None:
        super().__init__()
        self.down = nn.Parameter(_inner((3 * rank, width), width, random, spread))
        self.inner_bias = nn.Parameter(_bias(3 * rank, width, random, spread))
        self.ups = nn.ParameterList([_outer((width, rank), width, random, spread) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        parts = F.linear(x, self.down, self.inner_bias).chunk(3, dim=-1)  # 3 x [..., r]
        return torch.cat([F.linear(part, up) for part, up in zip(parts, self.ups, strict=True)], dim=-1)  # [..., 3 D]

    def quantized(self) -> tuple[Format, Tensor]:
        downs, biases = (tensor.detach().chunk(3) for tensor in (self.down, self.inner_bias))
        ups = [up.detach() for up in self.ups]
        forms = [LowRank.of(up, down, "fp32") for up, down in zip(ups, downs, strict=True)]
        folded = torch.cat([up @ bias for up, bias in zip(ups, biases, strict=True)])  # [3 D]
        return Stacked.of(forms), folded


class TTMLayer(Layer):
    """W is a train of cores G_k [r_{k-1}, in_k, out_k, r_k] with the published modes, ranks and initialisation.

    The published ranks are capped from the left only; sealing rounds them to what the modes can use, at no loss.

    Reference: arXiv 2306.02697, section 3 and its authors' code.
    """

    def __init__(
        self, out_features: int, in_features: int, rank: int, random: Generator, spread: float | None = None
    ) -> None:
        super().__init__()
        in_modes, out_modes = ttm_modes(in_features, out_features, rank)
        ranks = left_capped_ranks([i * o for i, o in zip(in_modes, out_modes, strict=True)], rank)
        self.cores = nn.ParameterList(drawn_cores(in_modes, out_modes, ranks, random, spread or SPREAD))
        self.bias = nn.Parameter(torch.zeros(out_features))

    def forward(self, x: Tensor) -> Tensor:
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        y = ttm_product(x, list(self.cores))
        return y + self.bias.to(y.dtype)

    def quantized(self) -> tuple[Format, Tensor]:
        cores = [core.detach() for core in self.cores]
        shape = (prod(core.shape[2] for core in cores), prod(core.shape[1] for core in cores))
        return TTMatrix.of(cores, shape, "fp32").rounded(), self.bias.detach()


def drawn_cores(
    in_modes: Sequence[int],
    out_modes: Sequence[int],
    ranks: Sequence[int],
    random: Generator,
    spread: float = SPREAD,
) -> list[Tensor]:
    """Return cores G_k whose matrix has entries of a given spread, by default the published one.

    They are drawn from N(0, 1) / sqrt(r_{k-1}), the last is scaled, and all but it are then made orthonormal from left
    to right, which leaves the matrix as it is.

    Reference: arXiv 2306.02697 and its authors' code.
    """
    shapes = zip(ranks[:-1], in_modes, out_modes, ranks[1:], strict=True)
    cores = [torch.randn(shape, generator=random) / sqrt(shape[0]) for shape in shapes]
    cores[-1] = cores[-1] * spread
    for k in range(len(cores) - 1):
        q, r = torch.linalg.qr(cores[k].flatten(0, 2))  # [r_{k-1} in out, r_k], [r_k, r_k]
        cores[k] = q.reshape(*cores[k].shape[:3], -1)
        cores[k + 1] = torch.tensordot(r, cores[k + 1], dims=1)
    return cores


def _inner(shape: tuple[int, ...], in_features: int, random: Generator, spread: float | None) -> Tensor:
    """Draw the factor [r, in]; with a spread it leaves its input as large as that is."""
    if spread is None:
        return _uniform(shape, in_features, random)
    return torch.randn(shape, generator=random) / sqrt(in_features)


def _outer(shape: tuple[int, int], in_features: int, random: Generator, spread: float | None) -> Tensor:
    """Draw the factor [out, r]; with a spread its product with the other one has it."""
    rank = shape[1]
    if spread is None:
        return _uniform(shape, rank, random)
    return spread * sqrt(in_features / rank) * torch.randn(shape, generator=random)


def _bias(count: int, fan_in: int, random: Generator, spread: float | None) -> Tensor:
    return _uniform((count,), fan_in, random) if spread is None else torch.zeros(count)


def _uniform(shape: tuple[int, ...], fan_in: int, random: Generator) -> Tensor:
    """Draw from U(-1 / sqrt(fan_in), 1 / sqrt(fan_in)), torch's default for a Linear."""
    return (2 * torch.rand(shape, generator=random) - 1) / sqrt(fan_in)
