"""What every engine has to offer to be measured."""

from pathlib import Path
from typing import Protocol


class Runner(Protocol):
    """A loaded model.

    Attributes:
        weight_bytes: of all weights but the table of positions, of which one row is read: what one decode step reads.
        kv_bytes_per_token: keys and values of one token in all layers.
    """

    weight_bytes: int
    kv_bytes_per_token: int

    def reserve(self, batch: int, capacity: int) -> None:
        """Make room for `batch` rows of `capacity` tokens, where the engine wants to know beforehand."""

    def generate(self, prompts: list[list[int]], count: int) -> list[list[int]]:
        """Return `count` greedily chosen tokens for each of the equally long prompts."""


class Load(Protocol):
    """The one function of every module in `runners`."""

    def __call__(self, model: Path, threads: int) -> Runner:
        """Return the model at `model`, ready to run.

        Raises:
            ImportError: if the engine is not installed.
        """
