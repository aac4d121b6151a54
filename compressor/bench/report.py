"""What was measured, as rows of a table, as JSON, and as a picture."""

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from compressor.bench.load import Load
from compressor.bench.rounds import Result
from compressor.figures import figure
from compressor.process.processor import processor
from compressor.runtime.version import versions
from compressor.storage import durable

MB = 1e6
MISSING = "-"
MARGIN = 0.2  # around the points, for their labels


def as_json(results: Sequence[Result], load: Load) -> dict[str, Any]:
    """Return everything for a file."""
    rows = [{"place": result.place, **asdict(result.model), **result.figures} for result in results]
    machine = {"processor": processor(), "cores": len(os.sched_getaffinity(0)), "load_average": os.getloadavg()[0]}
    return {"made_with": versions(), "machine": machine, "load": asdict(load), "models": rows}


def head(clients: Sequence[int]) -> list[str]:
    """Return the names of the columns."""
    speeds = [f"tokens/s, {clients[0]}", *(f"{count}" for count in clients[1:])]
    sizes = ["disk MB", "ready", "peak", "perplexity", "/ dense", "start, s"]
    return ["model", *sizes, "first, ms", "p95", *speeds, "next p95"]


def row(model: dict[str, Any], load: Load) -> list[str]:
    """Return one model of `as_json` as cells; its latencies are those with the usual number of clients."""
    measured = model["load"]
    usual = measured[str(load.usual)]
    return [
        model["name"],
        _megabytes(model["disk_bytes"], 2),
        _megabytes(model.get("ready_bytes"), 0),
        _megabytes(model.get("peak_bytes"), 0),
        figure(model["perplexity"], 2),
        MISSING if model["perplexity_ratio"] is None else figure(model["perplexity_ratio"], 3),
        f"{model['start_seconds']:.1f}" if "start_seconds" in model else MISSING,
        *(f"{value:.1f}" for value in usual["first_token_ms"].values()),
        *(f"{measured[str(count)]['tokens_per_s']:.0f}" for count in load.clients),
        f"{usual['inter_token_ms']['p95']:.1f}",
    ]


def draw(results: Sequence[Result], load: Load, path: Path) -> None:
    """Draw tokens per second against the most memory, each model beside its perplexity / dense, as the ending says."""
    with durable.replacing(path) as new:
        _picture(results, load).savefig(new, format=path.suffix.removeprefix("."), dpi=100)


def _picture(results: Sequence[Result], load: Load) -> Any:
    from matplotlib.figure import Figure

    from compressor.plot import annotate

    picture = Figure(figsize=(9, 6), layout="constrained")
    axes = picture.subplots()
    labels: list[tuple[str, tuple[float, float], Any]] = []
    for result in (result for result in results if "peak_bytes" in result.figures):
        speed = result.figures["load"][str(load.usual)]["tokens_per_s"]
        place = (result.figures["peak_bytes"] / MB, speed)
        (drawn,) = axes.plot(*place, "o", markersize=10)
        labels.append((_text(result), place, drawn.get_color()))
    clients = "1 client" if load.usual == 1 else f"{load.usual} clients"
    axes.set(xlabel="memory of the process, at most, MB", ylabel=f"tokens per second, {clients} together")
    axes.set_title("Up is faster, left is smaller")
    axes.margins(MARGIN)
    axes.grid(alpha=0.3)
    annotate(axes, labels)
    return picture


def _text(result: Result) -> str:
    ratio = result.model.perplexity_ratio
    quality = "" if ratio is None else f", {figure(ratio, 3)} x dense"
    return f"{result.model.name}\n{_megabytes(result.model.disk_bytes, 2)} MB{quality}"


def _megabytes(size_bytes: float | None, digits: int) -> str:
    return MISSING if size_bytes is None else f"{size_bytes / MB:.{digits}f}"
