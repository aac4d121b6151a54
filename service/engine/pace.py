"""How much of a prompt is read in a step that others write in, so that they hardly feel it."""

import time
from collections.abc import Callable

SHARE = 0.4  # of the time from one step to the next without prompts may be spent on them
LEAST = 16  # tokens, fewer of which are hardly read faster
WEIGHT = 0.2  # of the latest step in an average
DISTURBED_WEIGHT = 0.02  # of one that took longer: beside prompts, the steps without them are those that others disturb


class Pace:
    """Measures the time from one step to the next, delivery included. No answer depends on it, only when it comes."""

    def __init__(self, most: int, now: Callable[[], float] = time.perf_counter) -> None:
        """Know nothing yet.

        Args:
            most: tokens that are ever read in a step.
            now: a clock in seconds.
        """
        self._most = most
        self._now = now
        self._step: tuple[float, bool, int] | None = None  # when the latest began, whether any write, tokens read
        self._step_seconds = self._token_seconds = 0.0

    @property
    def tokens(self) -> int:
        """Tokens of prompts that a step may read beside those that write."""
        if not self._step_seconds or not self._token_seconds:
            return self._most
        return min(self._most, max(LEAST, int(SHARE * self._step_seconds / self._token_seconds)))

    def stepping(self, *, writing: bool, tokens: int) -> None:
        """A step begins in which some are writing, or none, and so many tokens of prompts are read."""
        now, latest = self._now(), self._step
        self._step = now, writing, tokens
        if latest is None:
            return
        seconds, wrote, read = now - latest[0], *latest[1:]
        if wrote and not read:
            longer = seconds > self._step_seconds
            self._step_seconds = _mean(self._step_seconds, seconds, DISTURBED_WEIGHT if longer else WEIGHT)
        elif read >= LEAST:
            spent = seconds - self._step_seconds if wrote else seconds
            self._token_seconds = _mean(self._token_seconds, max(spent, 0.0) / read, WEIGHT)

    def pause(self) -> None:
        """There is nothing to do until the next step."""
        self._step = None


def _mean(before: float, latest: float, weight: float) -> float:
    return before + weight * (latest - before) if before else latest
