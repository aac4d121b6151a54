"""When to stop asking a server that does not answer."""

from collections.abc import Callable

FAILURES = 3


class Breaker:
    """Open after `FAILURES` failures in a row; then nothing is asked until it has been closed again.

    It has no clock: its owner tries from time to time, beside the requests, and reports how that went.

    Attributes:
        open: whether asking is pointless.
    """

    def __init__(self, on_change: Callable[[bool], None] = lambda _: None) -> None:
        """Begin closed; `on_change` is called with every new value of `open`."""
        self.open = False
        self._failures = 0
        self._on_change = on_change

    def failed(self) -> None:
        """There was no answer."""
        self._failures += 1
        if self._failures >= FAILURES and not self.open:
            self.open = True
            self._on_change(True)

    def succeeded(self) -> None:
        """There was an answer."""
        self._failures = 0
        if self.open:
            self.open = False
            self._on_change(False)
