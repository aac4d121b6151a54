"""How long-running functions report progress without knowing how it is shown."""

from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """Wraps an iterable; the command line draws a bar, everything else uses `silent`."""

    def __call__(self, items: Iterable[T], *, label: str, total: int) -> Iterable[T]:
        """Return the same items, reporting each as it is taken."""
        ...


def silent(items: Iterable[T], *, label: str, total: int) -> Iterable[T]:
    """Report nothing."""
    return items


Echo = Callable[[str], None]


def ignore(message: str) -> None:
    """Drop a message."""
