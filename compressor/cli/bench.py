"""`ttgpt bench`: what each artefact costs and gives on this machine."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from compressor.bench.endpoint import KEY
from compressor.bench.load import Load
from compressor.cli.options import AsJson, say
from compressor.display import bar
from compressor.storage.run_folder import require_writable

PICTURES = (".svg", ".png", ".pdf")
WIDE = 160  # columns where there is no terminal
USUAL = Load()


def bench(
    places: Annotated[
        list[str], typer.Argument(metavar="URL|DIR...", help="Running services, and artefacts to serve meanwhile.")
    ],
    clients: Annotated[str, typer.Option(metavar="N,N...", help="Clients at the same time.")] = ",".join(
        map(str, USUAL.clients)
    ),
    prompt_tokens: Annotated[int, typer.Option(metavar="N", help="Of every prompt.")] = USUAL.prompt_tokens,
    new_tokens: Annotated[int, typer.Option(metavar="N", help="Of every answer.")] = USUAL.new_tokens,
    rounds: Annotated[int, typer.Option(metavar="N", help="In which all take turns.")] = USUAL.rounds,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Picture to write: .svg, .png or .pdf.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure speed, latency and memory of artefacts on this machine, beside their quality."""
    from compressor.bench import report
    from compressor.bench import rounds as turns

    load = Load(clients=_numbers(clients), prompt_tokens=prompt_tokens, new_tokens=new_tokens, rounds=rounds)
    if plot is not None:
        _check_picture(plot, force)
    results = turns.measure(places, load, os.environ.get(KEY), bar)
    told = report.as_json(results, load)
    if as_json:
        print(json.dumps(told))
    else:
        _print_table(report.head(load.clients), [report.row(model, load) for model in told["models"]])
    if plot is not None:
        try:
            report.draw(results, load, plot)
        except ModuleNotFoundError:
            say("note: no picture without matplotlib, which `pip install 'ttgpt[compressor]'` brings")


def _print_table(head: list[str], rows: list[list[str]]) -> None:
    table = Table(head[0], box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in head[1:]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.width = console.width if console.is_terminal else WIDE
    console.print(table)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"clients must be numbers such as 1,8,32, not {text!r}") from None


def _check_picture(path: Path, force: bool) -> None:
    """Refuse at once what could not be written in the end."""
    if path.suffix not in PICTURES:
        raise ValueError(f"plot must end in one of {', '.join(PICTURES)}, not {path}")
    if path.is_dir() or (path.exists() and not force):
        raise ValueError(f"plot: {path} exists; choose another name or add --force")
    require_writable("plot", path.parent)
