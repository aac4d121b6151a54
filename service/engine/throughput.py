"""How fast requests are worked off, and so when it is worth coming back."""

import time
from collections import deque
from collections.abc import Callable
from math import ceil

REMEMBERED = 64  # requests
LONGEST_SECONDS = 120
UNKNOWN_TOKENS_PER_SECOND = 100.0  # before anything has been finished


class ThroughputEstimate:
    """Remembers the requests that ended last."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._ended: deque[tuple[float, int]] = deque(maxlen=REMEMBERED)

    def ended(self, tokens: int) -> None:
        """A request of this many tokens is done."""
        self._ended.append((self._now(), tokens))

    def retry_seconds(self, waiting_tokens: int) -> int:
        """Return in how many whole seconds this many tokens are worked off, between 1 and LONGEST_SECONDS."""
        per_second = UNKNOWN_TOKENS_PER_SECOND
        if len(self._ended) > 1:
            begin = self._ended[0][0]
            tokens = sum(tokens for _, tokens in self._ended) - self._ended[0][1]
            per_second = tokens / max(self._now() - begin, 1e-3)
        return max(1, min(ceil(waiting_tokens / max(per_second, 1e-3)), LONGEST_SECONDS))
