"""Speculation without measuring, so that it can be counted."""

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
