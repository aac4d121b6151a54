"""One thread that computes. In every round each model's batch takes one step, and so does every lookup."""

import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from itertools import count
from math import inf
from typing import Any

from service.engine.batch import Batch
from service.engine.generation import Generation
from service.engine.jobs import Job, Request, deliver
from service.engine.kv_budget import kv_budget_bytes
from service.engine.lanes import JobLane, Lane
from service.engine.models import LoadedModel
from service.engine.pages import Pool
from service.engine.speculation import Speculation
from service.engine.throughput import ThroughputEstimate
from service.errors import DrainingError, InvalidRequestError, OverloadedError, TokensOverloadedError
from service.metrics import Metrics
from service.process import background
from service.process.logs import LOG
from service.settings import Settings

JOBS = ""  # the lane of everything but generations; models have names


class Engine:
    """Works on up to `max_batch` generations of each model, and as many lookups; `max_waiting` more wait.

    All of them together may need up to `max_tokens` tokens, except that one alone is never refused for that. Those that
    run share the KV cache: when there is no room for what they write, the youngest waits again.

    Attributes:
        metrics: where it reports.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.metrics = metrics
        self._settings = settings
        self._lanes: dict[str, Lane[Any]] = {}
        self._pool: Pool | None = None
        self._waiting: deque[Request[Any]] = deque()
        self._numbers = count()
        self._accepted: Counter[str] = Counter()  # waiting or running, by lane
        self._tokens = 0  # of all that are accepted
        self._closing = False
        self._throughput = ThroughputEstimate()
        self._changed = threading.Condition()  # guards the eight above
        self._round_began: float | None = None  # None while there is nothing to do
        self._thread = background.thread("engine", self._run, _tell_death)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def make_room(self, kv_bytes: int) -> Pool:
        """Let all KV caches together have so many bytes, before the first request comes; return these."""
        self.metrics.kv_cache_bytes.set(kv_bytes)
        self._pool = Pool(kv_bytes)
        return self._pool

    def prepare(self, model: LoadedModel, speculation: Speculation | None = None) -> None:
        """Make ready for a model's requests, and have a draft propose to it, before the first one comes."""
        batch = self._batch(model, speculation)
        with self._changed:
            self._lanes.setdefault(model.name, batch)

    def submit(self, request: Request[Any]) -> None:
        """Accept a request, whose events come through its mailbox; raises like `submit_all`."""
        self.submit_all([request])

    def submit_all(self, requests: Sequence[Request[Any]]) -> None:
        """Accept several requests or none of them; each has `request_seconds` from now.

        Raises:
            InvalidRequestError: if there are more than could ever be accepted together.
            OverloadedError: if there is no place in the queue, or too many tokens are in it.
            DrainingError: if the engine is closing.
        """
        with self._changed:
            self._check(requests)
            for request in requests:
                self._accepted[_lane_name(request)] += 1
                self._tokens += request.tokens
                request.number = next(self._numbers)
                self._waiting.append(request)
                self.metrics.num_requests_waiting.labels(request.model_name).inc()
            self._changed.notify()
        for request in requests:
            request.mailbox.expire_after(self._settings.request_seconds)

    def check(self, requests: Sequence[Request[Any]]) -> None:
        """Accept nothing; raises like `submit_all` if these requests would be refused now."""
        with self._changed:
            self._check(requests)

    def _check(self, requests: Sequence[Request[Any]]) -> None:
        if self._closing:
            raise DrainingError
        settings = self._settings
        most = settings.max_batch + settings.max_waiting
        if len(requests) > most:
            raise InvalidRequestError(f"n: {len(requests)} texts at once are more than the {most} that are possible")
        lanes = Counter(map(_lane_name, requests))
        full = any(self._accepted[lane] + more > settings.max_batch for lane, more in lanes.items())
        if full and self._queued(self._accepted + lanes) > settings.max_waiting:
            raise OverloadedError(self._throughput.retry_seconds(self._tokens))
        if self._accepted.total() and self._tokens + sum(r.tokens for r in requests) > settings.max_tokens:
            raise TokensOverloadedError(self._throughput.retry_seconds(self._tokens))

    @property
    def round_seconds(self) -> float:
        """How long the current round has lasted; 0 while there is nothing to do, inf if the thread has died."""
        began = self._round_began
        if self._thread.ident is not None and not self._thread.is_alive() and not self._closing:
            return inf
        return 0.0 if began is None else time.monotonic() - began

    def close(self) -> None:
        """Finish all accepted requests, then end the thread; blocks until then."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def _queued(self, accepted: Counter[str]) -> int:
        """Return how many of the accepted have to wait for a slot, apart from those that will have one at once."""
        return sum(max(0, count - self._settings.max_batch) for count in accepted.values())

    def _forget(self, request: Request[Any]) -> None:
        self._accepted[_lane_name(request)] -= 1
        self._tokens -= request.tokens

    def _run(self) -> None:
        while lanes := self._admit():
            self._round_began = time.monotonic()
            for lane in lanes:
                before = tuple(lane.members)
                lane.step()
                self._after(lane, before)

    def _after(self, lane: Lane[Any], before: tuple[Request[Any], ...]) -> None:
        """Deliver what a step has brought to those who were `before` it, and release those that have left."""
        deliver(request.mailbox for request in before)
        for request in set(before).difference(lane.members):
            if not request.waits:
                self.metrics.num_requests_running.labels(request.model_name).dec()
                with self._changed:
                    self._forget(request)
                    self._throughput.ended(request.tokens)

    def _admit(self) -> list[Lane[Any]]:
        """Give waiting requests their slots; return the lanes with work, none if all is done and no more comes."""
        with self._changed:
            while True:
                short = False  # of memory: who comes later does not take it from who came before
                for request in tuple(self._waiting):
                    short = not self._admit_one(request, short=short) or short
                lanes = [lane for lane in self._lanes.values() if lane.members]
                if lanes or self._closing:
                    return lanes
                self._round_began = None
                self._changed.wait()

    def _admit_one(self, request: Request[Any], *, short: bool) -> bool:
        """Let a request go, if its client has gone, or join its lane, if it has a slot; return whether memory was left.

        Args:
            request: that waits.
            short: whether there is no memory for another one that came earlier.
        """
        lane, gone = self._lane_of(request), request.mailbox.cancelled
        if not gone and (lane.full or (short and isinstance(lane, Batch))):
            return True
        if not gone and not lane.join(request):
            return False
        self._waiting.remove(request)
        self.metrics.num_requests_waiting.labels(request.model_name).dec()
        if gone:
            self._forget(request)
            request.abort()
            deliver([request.mailbox])
        else:
            self.metrics.num_requests_running.labels(request.model_name).inc()
        return True

    def _send_back(self) -> Generation:
        """Take the youngest generation out of its batch, to wait where it stood in the order of arrival; return it."""
        batches = [lane for lane in self._lanes.values() if isinstance(lane, Batch)]
        youngest, batch = max(
            ((member, batch) for batch in batches for member in batch.members), key=lambda found: found[0].number
        )
        batch.leave(youngest)
        youngest.sent_back()
        with self._changed:
            self._waiting.insert(sum(other.number < youngest.number for other in self._waiting), youngest)
        self.metrics.num_requests_running.labels(youngest.model_name).dec()
        self.metrics.num_requests_waiting.labels(youngest.model_name).inc()
        self.metrics.num_preemptions.labels(youngest.model_name).inc()
        return youngest

    def _lane_of(self, request: Request[Any]) -> Lane[Any]:
        name = _lane_name(request)
        if name not in self._lanes:
            self._lanes[name] = self._new_lane(request)
        return self._lanes[name]

    def _new_lane(self, request: Request[Any]) -> Lane[Any]:
        if isinstance(request, Generation):
            return self._batch(request.prompt.model)
        return JobLane(self._settings.max_batch)

    def _batch(self, model: LoadedModel, speculation: Speculation | None = None) -> Batch:
        pool = self._pool or self.make_room(kv_budget_bytes([model], self._settings))
        return Batch(model, self._settings, self.metrics, pool, self._send_back, speculation)


def _tell_death(error: BaseException) -> None:
    LOG.critical("the engine died; /livez says so", exc_info=error)


def _lane_name(request: Request[Any]) -> str:
    return JOBS if isinstance(request, Job) else request.model_name
