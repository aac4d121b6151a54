"""How many connections there may be, and which of them has to go when another one comes."""

import resource
from typing import Protocol

RESERVED_DESCRIPTORS = 64  # for files, Redis and the event loop


class Abortable(Protocol):
    """What can be closed at once."""

    def abort(self) -> None:
        """Close it."""


class WaitingRoom:
    """The connections that wait for their client, which has not sent a whole request or does not read its answer.

    When there are too many, the one that has waited longest is closed. So a new connection, a probe's for example,
    always finds a place, and a request that has come whole never loses its own.
    """

    def __init__(self, most: int) -> None:
        """Allow `most` connections, or fewer if descriptors are scarce."""
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        bounded = descriptors != resource.RLIM_INFINITY
        self._most = min(most, max(1, descriptors - RESERVED_DESCRIPTORS)) if bounded else most
        self._waiting: dict[Abortable, None] = {}  # the longest waiting first

    def enter(self, connection: Abortable) -> None:
        """Begin to wait, now, unless it is waiting already."""
        self._waiting.setdefault(connection)

    def leave(self, connection: Abortable) -> None:
        """Wait no longer."""
        self._waiting.pop(connection, None)

    def make_place(self, connections: int) -> None:
        """Close the one that has waited longest, if there are more connections than may be."""
        if connections > self._most and self._waiting:
            oldest = next(iter(self._waiting))
            self.leave(oldest)
            oldest.abort()


def raise_descriptor_limit() -> None:
    """Raise the soft limit of open descriptors to the hard one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
