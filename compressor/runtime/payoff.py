"""Whether a draft's proposals pay, from what was measured; what is written never depends on it.

With g proposals, of which each is accepted with probability a if those before it were, a step writes
E = 1 + a + ... + a^g tokens instead of 1, and takes the time to propose g tokens and to read them beside the last one.
Reference: Leviathan et al., "Fast inference from transformers via speculative decoding", arXiv 2211.17192, section 3.
"""

from collections.abc import Sequence
from typing import NamedTuple

MOST_TEXTS = 2  # that share a step; with more of them, the cores are busy without proposals
NEAR = 8  # unread tokens that a draft reads where it begins to propose; more of them it reads apart from that, before
LEAST_SPEEDUP = 1.05
RATE = 1 / 16  # of moving averages
EXPECTED_ACCEPTANCE = 0.7  # before anything is measured
FIRST_STEPS = 4  # without proposals, before anything is proposed
REFRESH = 64  # steps with proposals, after which one without is measured again
TRIES = 8  # of one place each, when proposals that did not pay are tried again
SHARE = 0.01  # of the time of other steps, that tries may lose


class Outcome(NamedTuple):
    """How many tokens were proposed for a text, at least one, and how many of the first ones it has written."""

    proposed: int
    accepted: int


class Average:
    """A moving average of what is never negative; of the first few samples the mean.

    Attributes:
        value: 0 before the first sample.
        samples: how many there were.
    """

    def __init__(self) -> None:
        self.value = 0.0
        self.samples = 0

    def add(self, sample: float) -> None:
        """Take a sample; one that is far too large, as when the process had to wait for a core, counts as twice it."""
        self.samples += 1
        if self.samples > 1:
            sample = min(sample, 2 * self.value)
        self.value += max(RATE, 1 / self.samples) * (max(0.0, sample) - self.value)


class Pace:
    """What steps of some texts take, in seconds.

    Attributes:
        step: without proposals.
        drafting: proposing one token for each text.
        checking: reading one more token of each text in a step.
    """

    def __init__(self) -> None:
        self.step, self.drafting, self.checking = Average(), Average(), Average()

    @property
    def place(self) -> float:
        """A proposal for each text, and reading it."""
        return self.drafting.value + self.checking.value


class Payoff:
    """Chooses how many tokens to propose.

    Law: where proposals do not pay, trying them again loses at most SHARE of the time, but for the try that overdraws.

    Attributes:
        acceptance: share of proposals that are accepted where those before them were.
    """

    def __init__(self, most: int) -> None:
        """Measure nothing yet; at most `most` tokens are proposed at a time."""
        self.acceptance = EXPECTED_ACCEPTANCE
        self._most = most
        self._paces = [Pace() for _ in range(MOST_TEXTS)]
        self._token = Average()  # seconds in which the draft reads one of many tokens
        self._rounds = 0  # with proposals, since the last step without
        self._tries = 0  # left of those that may lose
        self._saved = 0.0  # seconds that tries may lose

    def count(self, texts: int, behind: int) -> int:
        """Return how many tokens to propose for each of `texts`, of which the draft has not read `behind` tokens."""
        if not 0 < texts <= MOST_TEXTS:
            return 0
        pace = self._paces[texts - 1]
        if pace.step.samples < FIRST_STEPS or self._rounds >= REFRESH:
            return 0
        speedup, best = self._best(pace)
        if speedup >= LEAST_SPEEDUP:
            return best
        if not self._tries and self._saved >= behind * self._token.value + TRIES * pace.place:
            self._tries = TRIES
        return min(self._tries, 1)

    def catches_up(self, texts: int, behind: int, left: int) -> bool:
        """Return whether a draft should read `behind` tokens of a text of which `left` at most are to be written."""
        pace = self._paces[texts - 1]
        saved = left * pace.step.value * (1 - 1 / self._best(pace)[0])
        return self._tries > 0 or behind * self._token.value <= max(saved, 2 * pace.drafting.value)

    def stepped(self, texts: int, seconds: float) -> None:
        """A step without proposals took so long."""
        self._paces[texts - 1].step.add(seconds)
        self._rounds = 0
        self._saved += SHARE * seconds

    def caught_up(self, tokens: int, seconds: float) -> None:
        """The draft read so many tokens that were not proposed."""
        self._token.add(seconds / tokens)
        self._pay(seconds)

    def checked(self, texts: int, outcomes: Sequence[Outcome], drafting: float, checking: float | None) -> None:
        """Tokens were proposed for some of so many texts, and read in a step.

        Args:
            texts: that shared the step.
            outcomes: of those for which tokens were proposed.
            drafting: seconds that proposing took.
            checking: seconds of the step; None if it did more than this.
        """
        pace = self._paces[texts - 1]
        pace.drafting.add(drafting / max(outcome.proposed for outcome in outcomes))
        if checking is not None:
            rows = sum(outcome.proposed for outcome in outcomes) / texts
            pace.checking.add((checking - pace.step.value) / rows)
            self._pay(drafting + checking - pace.step.value)
        for outcome in outcomes:
            self._learn(outcome)
        self._rounds += 1
        self._tries = max(0, self._tries - 1)

    def _learn(self, outcome: Outcome) -> None:
        """Take what became of every proposal up to the first that was not accepted."""
        for place in range(min(outcome.accepted + 1, outcome.proposed)):
            self.acceptance += RATE * ((place < outcome.accepted) - self.acceptance)

    def _pay(self, seconds: float) -> None:
        if self._tries:
            self._saved -= seconds

    def _best(self, pace: Pace) -> tuple[float, int]:
        """Return with how many proposals texts are written fastest, after how many times faster than without.

        It is asked in every step: a few multiplications.
        """
        step, place = pace.step.value, pace.place
        best, share, written = (0.0, 0), 1.0, 1.0
        for count in range(1, self._most + 1):
            share *= self.acceptance
            written += share
            best = max(best, (written * step / (step + count * place), count))
        return best
