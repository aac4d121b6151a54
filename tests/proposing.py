"""Drafts for tests: such as propose without measuring, so that it can be counted."""

from dataclasses import replace

from compressor.formats import Dense
from compressor.gpt2 import GPT2
from compressor.runtime.payoff import MOST_TEXTS, Payoff


class Always(Payoff):
    """Proposes as much as it may, whatever that costs."""

    def __init__(self, most: int) -> None:
        super().__init__(most)
        self.most = most

    def count(self, texts: int, behind: int) -> int:
        return self.most if texts <= MOST_TEXTS else 0

    def catches_up(self, texts: int, behind: int, left: int) -> bool:
        return True


def shortened(model: GPT2, positions: int) -> GPT2:
    """Return the same model with a shorter context."""
    wpe = Dense.of(model.wpe.dense()[:positions], "fp32")
    return GPT2(replace(model.config, n_positions=positions), model.matrices() | {"wpe": wpe}, model.vectors())
