"""Replicas behind a balancer, under requests that arrive at given moments."""

from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.scaling.autoscaler import SYNC_SECONDS, Autoscaler
from tests.benchmarks.scaling.replica import NEVER, Replica
from tests.benchmarks.scaling.speed import Speed

Floats = NDArray[np.float64]
GONE = np.iinfo(np.int64).max  # the load of a replica that gets no requests


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """How replicas come and go.

    Attributes:
        autoscaler: decides how many there are.
        pod_seconds: from that to the start of a new replica's process.
        scrape_seconds: between two samples of the metrics.
    """

    autoscaler: Autoscaler
    pod_seconds: float
    scrape_seconds: float


@dataclass
class Outcome:
    """What happened to every request, and how many replicas there were.

    Attributes:
        arrived: when each request came.
        tokens: that it asked for.
        read: when its prompt was read; NaN if it was refused.
        done: when its last token was written.
        replicas: moments, and how many there were from then on.
        busy_seconds: of all replicas.
    """

    arrived: Floats
    tokens: NDArray[np.int64]
    read: Floats
    done: Floats
    replicas: list[tuple[float, int]] = field(default_factory=list)
    busy_seconds: float = 0.0

    @property
    def waits(self) -> Floats:
        """Seconds from the arrival of every answered request until its prompt was read."""
        waits: Floats = (self.read - self.arrived)[~np.isnan(self.read)]
        return waits

    @property
    def refused(self) -> int:
        """Requests that were refused."""
        return int(np.isnan(self.read).sum())

    def mean_replicas(self, end: float) -> float:
        """Return how many there were until `end`, on average over time."""
        times, counts = zip(*self.replicas, strict=True)
        return float(np.average(counts, weights=np.diff([*times, end])))


class Fleet:
    """Replicas, ready or not, and what is due.

    Args:
        speed: of each.
        replicas: at the beginning, when all are ready.
        least_loaded: each request goes to the replica with the fewest; otherwise they take turns.
        scaling: changes their number; by default it stays.
    """

    def __init__(
        self, speed: Speed, replicas: int, *, least_loaded: bool = False, scaling: Scaling | None = None
    ) -> None:
        self._speed = speed
        self._least_loaded = least_loaded
        self._scaling = scaling
        self._all = [Replica(speed) for _ in range(replicas)]
        self._load = np.zeros(replicas, np.int64)
        self._ready = list(range(replicas))
        self._starting: list[int] = []
        self._turn = 0
        self._due: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = count()
        self._totals = {"cpu": 0.0, "waiting": 0.0, "in_flight": 0.0}
        self._busy_before: dict[int, float] = {}

    def run(self, arrivals: Floats, tokens: NDArray[np.int64]) -> Outcome:
        """Return what happens to requests that arrive in this order, each with so many new tokens."""
        missing = np.full(len(arrivals), np.nan)
        self._outcome = Outcome(arrivals, tokens, missing, missing.copy(), [(0.0, len(self._all))])
        end = float(arrivals[-1])
        if self._scaling is not None:
            self._at(0.0, self._scrape, end)
            self._at(SYNC_SECONDS / 2, self._sync, end)
        for request, (now, length) in enumerate(zip(arrivals.tolist(), tokens.tolist(), strict=True)):
            self._work(now)
            self._assign(now, request, length)
        self._work(NEVER)
        self._outcome.busy_seconds = sum(replica.busy_seconds for replica in self._all)
        return self._outcome

    def _at(self, when: float, act: Callable[..., None], *arguments: Any) -> None:
        heappush(self._due, (when, next(self._order), act, arguments))

    def _work(self, until: float) -> None:
        while self._due and self._due[0][0] <= until:
            when, _, act, arguments = heappop(self._due)
            act(when, *arguments)

    def _assign(self, now: float, request: int, length: int) -> None:
        if self._least_loaded:
            index = int(self._load.argmin())
        else:
            index = self._ready[self._turn % len(self._ready)]
            self._turn += 1
        replica = self._all[index]
        replica.advance(now)
        read = replica.accept(request, length)
        if read is None:
            return
        self._load[index] += 1
        if read < NEVER:
            self._outcome.read[request] = read
            self._at(replica.next_done(), self._finish, index, replica.version)

    def _finish(self, now: float, index: int, version: int) -> None:
        replica = self._all[index]
        if replica.version != version:  # foreseen before something else came
            return
        replica.advance(now)
        request, following, read = replica.finish()
        self._outcome.done[request] = now
        if self._load[index] != GONE:
            self._load[index] -= 1
        if following is not None:
            self._outcome.read[following] = read
        if replica.running:
            self._at(replica.next_done(), self._finish, index, replica.version)

    def _scrape(self, now: float, end: float) -> None:
        """Take a sample of the metrics."""
        replicas = [(index, self._all[index]) for index in self._ready]
        for _, replica in replicas:
            replica.advance(now)
        interval = self._scaling.scrape_seconds if self._scaling else NEVER
        busy = sum(replica.busy_seconds - self._busy_before.get(index, 0.0) for index, replica in replicas)
        self._busy_before = {index: replica.busy_seconds for index, replica in replicas}
        self._totals["cpu"] = self._speed.busy_share * busy / interval
        self._totals["waiting"] = float(sum(replica.waiting for _, replica in replicas))
        self._totals["in_flight"] = float(sum(replica.waiting + replica.running for _, replica in replicas))
        if now + interval <= end:
            self._at(now + interval, self._scrape, end)

    def _sync(self, now: float, end: float) -> None:
        """Have the autoscaler decide."""
        if self._scaling is None:
            return
        current = len(self._ready) + len(self._starting)
        wanted = self._scaling.autoscaler.replicas(now, current, self._totals, len(self._ready))
        for _ in range(current, wanted):
            self._start(now + self._scaling.pod_seconds + self._speed.start_seconds)
        for _ in range(wanted, current):
            self._retire()
        if wanted != current:
            self._outcome.replicas.append((now, wanted))
        if now + SYNC_SECONDS <= end:
            self._at(now + SYNC_SECONDS, self._sync, end)

    def _start(self, ready: float) -> None:
        index = len(self._all)
        self._all.append(Replica(self._speed, ready))
        self._load = np.append(self._load, GONE)
        self._starting.append(index)
        self._at(ready, self._join, index)

    def _join(self, _: float, index: int) -> None:
        if index in self._starting:  # not retired meanwhile
            self._starting.remove(index)
            self._ready.append(index)
            self._load[index] = 0

    def _retire(self) -> None:
        """Send the newest replica no more requests; it finishes those that it has."""
        index = self._starting.pop() if self._starting else self._ready.pop()
        self._load[index] = GONE
