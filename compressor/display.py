"""What a user sees of a long step: a bar with the time that is left, or a line about it now and then."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

T = TypeVar("T")
FIRST_LINE_SECONDS, LINE_SECONDS = 50.0, 60.0  # where there is no terminal


def bar(items: Iterable[T], *, label: str, total: int) -> Iterable[T]:
    """Show on stderr how far a long step is; nothing of a short one where that is not a terminal."""
    console = Console(stderr=True)
    return _drawn(items, label, total, console) if console.is_terminal else _told(items, label, total)


def left(seconds: float, done: float, total: float) -> str:
    """Return how long the rest takes at the same speed, in words."""
    if not done:
        return ""
    rest = seconds / done * (total - done)
    return f"{rest:.0f} seconds to go" if rest < 120 else f"{rest / 60:.0f} minutes to go"


class _Left(ProgressColumn):
    """The time that is left by all that is done, since single items may take minutes."""

    def render(self, task: Task) -> Text:
        return Text(left(task.elapsed or 0.0, task.completed, task.total or 0))


def _drawn(items: Iterable[T], label: str, total: int, console: Console) -> Iterator[T]:
    with Progress(TextColumn(label), BarColumn(), MofNCompleteColumn(), _Left(), console=console) as progress:
        yield from progress.track(items, total=total)


def _told(items: Iterable[T], label: str, total: int) -> Iterator[T]:
    started = time.monotonic()
    due = started + FIRST_LINE_SECONDS
    for done, item in enumerate(items, start=1):
        yield item
        if (now := time.monotonic()) >= due:
            print(f"{label}: {done} of {total}, {left(now - started, done, total)}", file=sys.stderr, flush=True)
            due = now + LINE_SECONDS
