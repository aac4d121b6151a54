"""A lane holds the requests that share slots, and advances all of them by one step."""

from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar

from service.engine.jobs import Job, Request
from service.errors import RequestFailedError
from service.process.logs import LOG

Work = TypeVar("Work", bound=Request[Any])


class Lane(ABC, Generic[Work]):
    """Up to `slots` requests that are worked on at the same time.

    Attributes:
        slots: how many.
        members: the requests, in the order in which they came.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.members: list[Work] = []

    @property
    def full(self) -> bool:
        """Whether no slot is free."""
        return len(self.members) >= self.slots

    def join(self, request: Work) -> bool:
        """Give a request a slot; return whether there was memory for it."""
        self.members.append(request)
        return True

    def leave(self, request: Work) -> None:
        """Take the slot back."""
        self.members.remove(request)

    def step(self) -> None:
        """Advance the members by one step; those that end, fail or are gone leave."""
        for member in tuple(self.members):
            if member.mailbox.cancelled:
                member.abort()
                self.leave(member)
        if self.members:
            self.advance()

    @abstractmethod
    def advance(self) -> None:
        """Advance the members, of which there is at least one."""

    def fail(self, request: Work) -> None:
        """Tell the client of a request, and the log, about the exception being handled."""
        LOG.exception("request failed", extra={"model": request.model_name, "request_id": request.request_id})
        request.mailbox.put(RequestFailedError())
        self.leave(request)


class JobLane(Lane[Job[Any]]):
    """Jobs that are done alone: each takes one step."""

    def advance(self) -> None:
        for job in tuple(self.members):
            try:
                ended = job.step()
            except Exception:
                self.fail(job)
            else:
                if ended:
                    self.leave(job)
