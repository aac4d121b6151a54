"""One replica: a batch that writes a token of every request per step, and a queue before it."""

from collections import deque
from heapq import heappop, heappush

from tests.benchmarks.scaling.speed import Speed

NEVER = float("inf")


class Replica:
    """What runs and waits, at the moment up to which it has worked.

    Progress is counted in steps: a request of n tokens that joins at step s is done at step s + n. Reading a prompt
    stops all steps.

    Attributes:
        version: counts changes, so that a moment that was foreseen before one can be told to be out of date.
        busy_seconds: in which it had requests.
    """

    def __init__(self, speed: Speed, now: float = 0.0) -> None:
        self._speed = speed
        self._running: list[tuple[float, int]] = []  # the step at which each is done, and the request
        self._waiting: deque[tuple[int, int]] = deque()
        self._steps = 0.0
        self._now = now
        self._reading_until = now
        self.version = 0
        self.busy_seconds = 0.0

    @property
    def running(self) -> int:
        """Requests with a slot."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Requests without one."""
        return len(self._waiting)

    def advance(self, now: float) -> None:
        """Work until `now`, before which nothing is done."""
        if self._running:
            self._steps += max(0.0, now - max(self._now, self._reading_until)) / self._step
            self.busy_seconds += now - self._now
        self._now = now

    def accept(self, request: int, tokens: int) -> float | None:
        """Take a request; return when its prompt is read: NEVER if it waits, None if it is refused."""
        if self.running < self._speed.slots:
            return self._admit(request, tokens)
        if self.waiting >= self._speed.max_waiting:
            return None
        self._waiting.append((request, tokens))
        return NEVER

    def finish(self) -> tuple[int, int | None, float]:
        """End the request that is done now; return it, what takes its slot, and when the prompt of that is read."""
        self._steps, request = heappop(self._running)
        self.version += 1
        if not self._waiting:
            return request, None, NEVER
        following, tokens = self._waiting.popleft()
        return request, following, self._admit(following, tokens)

    def next_done(self) -> float:
        """Return when the next request will be done if nothing else comes."""
        if not self._running:
            return NEVER
        return max(self._now, self._reading_until) + (self._running[0][0] - self._steps) * self._step

    @property
    def _step(self) -> float:
        return self._speed.step_seconds[len(self._running)]

    def _admit(self, request: int, tokens: int) -> float:
        self._reading_until = max(self._now, self._reading_until) + self._speed.read_seconds
        heappush(self._running, (self._steps + tokens, request))
        self.version += 1
        return self._reading_until
