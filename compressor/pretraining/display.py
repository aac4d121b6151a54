"""What a user sees of a run: a bar with tokens per second on a terminal, a line now and then elsewhere."""

import sys
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from compressor.pretraining.training import Training

COLUMNS = (
    "{task.completed:,.0f} of {task.total:,.0f} tokens, {task.fields[speed]:,.0f} tokens/s, loss {task.fields[loss]}"
)


def shown(training: Training) -> Iterator[float]:
    """Run the training to its end, showing it on stderr."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield from _lines(training)
        return
    columns = (TextColumn("Training"), BarColumn(), TextColumn(COLUMNS), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        total = training.config.steps * training.config.batch_tokens
        task = bar.add_task("", total=total, completed=training.tokens, speed=0.0, loss="?")
        first, before = training.tokens, training.seconds
        for loss in training.run():
            speed = (training.tokens - first) / max(training.seconds - before, 1e-9)
            shown_loss = f"{loss:.3f}, validation {training.curve[-1].loss:.3f}"
            bar.update(task, completed=training.tokens, speed=speed, loss=shown_loss)
            yield loss


def _lines(training: Training) -> Iterator[float]:
    """Print one line per point of the validation curve."""
    printed, first, before = len(training.curve), training.tokens, training.seconds
    for loss in training.run():
        if len(training.curve) > printed:
            printed = len(training.curve)
            speed = (training.tokens - first) / max(training.seconds - before, 1e-9)
            left = (training.config.steps * training.config.batch_tokens - training.tokens) / max(speed, 1e-9)
            print(
                f"{training.tokens:,} tokens, loss {loss:.4f}, validation {training.curve[-1].loss:.4f}, "
                f"{speed:,.0f} tokens/s, {left / 60:.1f} minutes to go",
                file=sys.stderr,
                flush=True,
            )
        yield loss
