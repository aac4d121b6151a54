"""What every method is: a frozen Config and a pure function from a matrix to a format."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from compressor.artifact.gpt2_config import component_of
from compressor.codecs import codec_named
from compressor.errors import check_range
from compressor.formats import Format
from compressor.progress import Progress, silent

Target = Literal["none", "embedding", "qkv", "attn", "mlp", "linears", "all"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Statistics:
    """What calibration text says about one matrix W [out, in]; see `compressor.recipes.calibrate`.

    Attributes:
        second_moment: mean of x x^T over the inputs x that W is multiplied by [in, in]. The identity for a table
            whose rows are only read. For a token embedding with its tied head the mean of both: the moment of the
            last hidden states, and the identity times its mean diagonal. (With whitened_svd at rank 64 on gpt2-mini
            that mean gives 1.60 x the dense perplexity, the hidden states alone 2.02, the identity alone 1.92.)
        row_weights: how much an error in each row matters [out], of mean 1; None means equally. For a head the
            curvature of the loss, E p (1 - p); for a table that is read how often each token is; for a tied one
            the mean of both.
        difference_moment: half the mean of d d^T over differences d of inputs a few tokens apart [in, in], for the
            attention's input; otherwise None. Attention compares keys of nearby tokens and does not see what they
            share, which is most of the second moment there. (Rounding gpt2-mini's c_attn to int3 costs 5 % of
            perplexity to nearest, 29 % by GPTQ with the second moment, 3 % by GPTQ with this one; low-rank
            factors, whose errors are larger, do better with the second moment.)
        heads: how many heads q, k and v are each made of, for the fused matrix of the three; otherwise None.
    """

    second_moment: Tensor
    row_weights: Tensor | None = None
    difference_moment: Tensor | None = None
    heads: int | None = None

    def of_rows(self, rows: Tensor | slice) -> "Statistics":
        """Return those of some rows of W."""
        return self if self.row_weights is None else replace(self, row_weights=self.row_weights[rows])


def needed(statistics: Statistics | None, method: str) -> Statistics:
    """Return the statistics that `method` cannot do without.

    Raises:
        ValueError: if there are none.
    """
    if statistics is None:
        raise ValueError(
            f"{method} needs statistics of the matrix: collect them from text of your own (--calibration-text) or from "
            "text sampled from the model (the default)"
        )
    return statistics


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of a method, checked in __post_init__. This one has none."""

    def check(self, shape: tuple[int, int], heads: int) -> None:
        """Refuse options that do not suit a matrix [out, in] of a model with so many heads; raises ValueError."""


@dataclass(frozen=True, kw_only=True)
class CodecConfig(Config):
    """Options of every method that finds new tensors.

    Attributes:
        codec: how those tensors are stored.
    """

    codec: str = "fp16"

    def __post_init__(self) -> None:
        codec_named(self.codec)


@dataclass(frozen=True, kw_only=True)
class RankConfig(CodecConfig):
    """Options of every method that cuts at a rank.

    Attributes:
        rank: how many singular values are kept.
    """

    rank: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, not {self.rank}")

    def check(self, shape: tuple[int, int], heads: int) -> None:
        check_range("rank", self.rank, 1, min(shape))


@dataclass(frozen=True, kw_only=True)
class WhitenedConfig(RankConfig):
    """Options of every method that weighs by the inputs' second moment.

    Attributes:
        damping: added to the second moment's diagonal, as a share of its mean.
    """

    damping: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("damping", self.damping, 0, 1e6)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: LAPACK's last bits depend on how many there are, and more hardly hurry it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True, kw_only=True)
class Method:
    """An entry of METHODS.

    Attributes:
        config: its options, a subclass of Config.
        compress: weight [out, in], config, statistics or None, progress -> the format found.
        target: which matrices it is meant for; the others keep the checkpoint's dtype.
        calibrated: whether it needs statistics.
        compress_rows: weight [out, in], rows [n], config, statistics or None -> these rows of what would be found
            [n, in]; None where they are found by themselves.
    """

    config: type[Config]
    compress: Callable[[Tensor, Any, Statistics | None, Progress], Format]
    target: Target
    calibrated: bool = False
    compress_rows: Callable[[Tensor, Tensor, Any, Statistics | None], Tensor] | None = None

    @one_thread()
    def found(
        self, name: str, weight: Tensor, config: Config, statistics: Statistics | None, progress: Progress
    ) -> Format:
        """Return the format that is found for the matrix called `name`.

        Raises:
            ValueError: naming the matrix, if its values or those that come out are not finite, or an option does not
                suit it.
        """
        if not torch.isfinite(weight).all():
            raise ValueError(f"{name}: must be finite")
        with _naming(name):
            form = self.compress(weight, config, statistics, progress)
        if not torch.isfinite(form.dense()).all():
            largest = float(weight.abs().max())
            raise ValueError(f"{name}: has values up to {largest:.3g}, of which the method makes infinities")
        return form

    @one_thread()
    def found_rows(
        self, name: str, weight: Tensor, rows: Tensor, config: Config, statistics: Statistics | None
    ) -> Tensor:
        """Return some rows [n, in] of what is found for the matrix called `name`, in less time; raises ValueError."""
        with _naming(name):
            if self.compress_rows is not None:
                return self.compress_rows(weight, rows, config, statistics)
            return self.compress(weight[rows], config, statistics and statistics.of_rows(rows), silent).dense()


@contextmanager
def _naming(name: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
        raise ValueError(f"{name}: {error}") from error


def is_target(name: str, target: Target) -> bool:
    """Return whether the matrix called `name` is one of `target`; "qkv" is the fused input of attention."""
    component = component_of(name)
    if target == "embedding":
        return component == "wte"
    if target == "linears":
        return component in ("attn", "mlp")
    if target == "qkv":
        return name.endswith(".c_attn")
    return target in ("all", component)
