"""`direction_ae`: a linear auto-encoder of the rows, trained for their direction.

Reference: "Direction is what you need: Improving Word Embedding Compression in Large Language Models",
arXiv 2106.08181, sections 3 and 4 for loss and schedule. The authors choose the epoch on a test set; here it is
the last one.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from compressor.errors import check_range
from compressor.formats import LowRank
from compressor.methods.base import CodecConfig, Statistics
from compressor.methods.direction_svd import stored
from compressor.progress import Progress, silent

COSINE_WEIGHT = 0.9975 / 5
NORM_WEIGHT = 0.0025
LEARNING_RATE = 1e-3
HALVING_EPOCHS = 4


@dataclass(frozen=True, kw_only=True)
class Config(CodecConfig):
    """Options of `direction_ae`.

    Attributes:
        rank: width k of the latents; by default what `ratio` gives.
        ratio: of the values of the matrix to those of its factors.
        epochs: of training; the fractional norm is annealed over the first two thirds.
        batch: rows per step.
        seed: of the initial weights and the order of the rows.
    """

    rank: int | None = None
    ratio: float = 2.5
    epochs: int = 30
    batch: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("rank", "epochs", "batch"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ValueError(f"{field} must be at least 1, not {value}")
        check_range("epochs", self.epochs, 1, 10**6)
        check_range("batch", self.batch, 1, 10**9)
        check_range("ratio", self.ratio, 1, 1e6)
        check_range("seed", self.seed, 0, 2**63 - 1)

    def check(self, shape: tuple[int, int], heads: int) -> None:
        check_range("rank", self.rank or 1, 1, min(shape))


@dataclass(frozen=True)
class Autoencoder:
    """x -> (x @ encoder.T + encoder_bias) @ decoder.T + decoder_bias.

    Attributes:
        encoder: [k, in].
        encoder_bias: [k].
        decoder: [in, k].
        decoder_bias: [in].
    """

    encoder: Tensor
    encoder_bias: Tensor
    decoder: Tensor
    decoder_bias: Tensor

    @classmethod
    def initial(cls, width: int, rank: int, random: torch.Generator) -> "Autoencoder":
        """Return torch's default initialisation of two linears: uniform within 1 / sqrt(inputs)."""

        def uniform(*shape: int, inputs: int) -> Tensor:
            values = (2 * torch.rand(shape, generator=random) - 1) / math.sqrt(inputs)
            return values.requires_grad_()

        return cls(
            encoder=uniform(rank, width, inputs=width),
            encoder_bias=uniform(rank, inputs=width),
            decoder=uniform(width, rank, inputs=rank),
            decoder_bias=uniform(width, inputs=rank),
        )

    def encode(self, x: Tensor) -> Tensor:
        """Return the latents [..., k] of x [..., in]."""
        return F.linear(x, self.encoder, self.encoder_bias)

    def decode(self, latents: Tensor) -> Tensor:
        """Return the rows [..., in] of the latents [..., k]."""
        return F.linear(latents, self.decoder, self.decoder_bias)


def compress(
    weight: Tensor, config: Config, statistics: Statistics | None = None, progress: Progress = silent
) -> LowRank:
    """Return the latents [V, k] and the decoder that were learnt for the rows of `weight` [V, D]."""
    rank = svd_rank(weight.shape[0], weight.shape[1], config.ratio) if config.rank is None else config.rank
    check_range("rank", rank, 1, min(weight.shape))
    rows = weight.float()
    with torch.enable_grad():
        model = _trained(rows, rank, config, progress)
    with torch.no_grad():
        offset = model.decoder_bias.detach()
        return stored(model.encode(rows), model.decoder.T.contiguous(), config.codec, column_offset=offset)


def svd_rank(vocabulary: int, width: int, ratio: float) -> int:
    """Return the rank at which two factors hold 1 / ratio of the values: 302 for GPT-2 at 2.5."""
    return max(1, int(vocabulary * width / (ratio * (vocabulary + width))))


def direction_loss(rows: Tensor, decoded: Tensor, exponent: float) -> Tensor:
    """Return the published loss of `decoded` [B, D] against `rows` [B, D]."""
    directions = (1 - F.cosine_similarity(rows, decoded, dim=-1)).mean()
    norms = ((decoded - rows).abs() + 1e-10).pow(exponent).mean()
    return COSINE_WEIGHT * directions + NORM_WEIGHT * norms


def exponents(epochs: int) -> list[float]:
    """Return the exponent of every epoch: from 1 to 0.1 over two thirds of them (20 of 30), then 0.1."""
    annealed = max(1, round(epochs * 2 / 3))
    steps = [1 - 0.9 * i / max(1, annealed - 1) for i in range(annealed)]
    return steps + [0.1] * (epochs - annealed)


def _trained(rows: Tensor, rank: int, config: Config, progress: Progress) -> Autoencoder:
    random = torch.Generator().manual_seed(config.seed)
    model = Autoencoder.initial(rows.shape[1], rank, random)
    parameters = [model.encoder, model.encoder_bias, model.decoder, model.decoder_bias]
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, HALVING_EPOCHS, 0.5)
    for exponent in progress(exponents(config.epochs), label="Auto-encoder", total=config.epochs):
        for batch in _shuffled(rows, config.batch, random):
            optimizer.zero_grad()
            direction_loss(batch, model.decode(model.encode(batch)), exponent).backward()
            optimizer.step()
        schedule.step()
    return model


def _shuffled(rows: Tensor, batch: int, random: torch.Generator) -> Iterator[Tensor]:
    for ids in torch.randperm(len(rows), generator=random).split(batch):
        yield rows[ids]
