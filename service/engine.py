"""One thread that computes. Jobs take turns, one step each, so a long one does not hold up the others."""

import threading
from collections import deque
from typing import Any

import structlog
import torch

from service.errors import DrainingError, OverloadedError, RequestFailedError
from service.jobs import Job
from service.metrics import Metrics
from service.settings import Settings


class Engine:
    """Advances up to `max_active` jobs round-robin; up to `max_waiting` more wait for their turn.

    Attributes:
        metrics: where it reports.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.metrics = metrics
        self._settings = settings
        self._waiting: deque[Job[Any]] = deque()
        self._active: list[Job[Any]] = []
        self._closing = False
        self._changed = threading.Condition()  # guards the three above
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, job: Job[Any]) -> None:
        """Accept a job, whose events come through its mailbox.

        Raises:
            OverloadedError: if there is no place in the queue.
            DrainingError: if the engine is closing.
        """
        with self._changed:
            if self._closing:
                raise DrainingError
            if len(self._waiting) + len(self._active) >= self._settings.max_active + self._settings.max_waiting:
                raise OverloadedError
            self._waiting.append(job)
            self.metrics.num_requests_waiting.labels(job.model_name).inc()
            self._changed.notify()

    def close(self) -> None:
        """Finish all accepted jobs, then end the thread; blocks until then."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        torch.set_num_threads(self._settings.threads)
        with torch.inference_mode():
            while self._admit():
                for job in tuple(self._active):
                    if self._advance(job):
                        self._release(job)

    def _admit(self) -> bool:
        """Give waiting jobs their slots; return False when all is done and no more will come."""
        with self._changed:
            while True:
                for job in [job for job in self._waiting if job.mailbox.cancelled]:
                    self._take(job)
                    job.abort()
                while self._waiting and len(self._active) < self._settings.max_active:
                    self._active.append(self._take(self._waiting[0]))
                    self.metrics.num_requests_running.labels(self._active[-1].model_name).inc()
                if self._active:
                    return True
                if self._closing:
                    return False
                self._changed.wait()

    def _take(self, job: Job[Any]) -> Job[Any]:
        self._waiting.remove(job)
        self.metrics.num_requests_waiting.labels(job.model_name).dec()
        return job

    def _release(self, job: Job[Any]) -> None:
        with self._changed:
            self._active.remove(job)
        self.metrics.num_requests_running.labels(job.model_name).dec()

    def _advance(self, job: Job[Any]) -> bool:
        """Let `job` do one step, unless nobody waits for it; return whether it leaves its slot."""
        if job.mailbox.cancelled:
            job.abort()
            return True
        try:
            return job.step()
        except Exception:
            structlog.get_logger().exception("request failed", model=job.model_name)
            job.mailbox.put(RequestFailedError())
            return True
