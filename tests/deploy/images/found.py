"""What a run of `make test-images` finds out about the images: sizes, times and memory, printed and published."""

import json
import os
from pathlib import Path
from typing import Any

from compressor.pages import Block, refresh, table
from compressor.runtime.version import versions
from tests.benchmarks import machine

RESULTS = Path(__file__).parent / "results.json"
_COLUMNS = {
    "image_bytes": "image, MB",
    "start_seconds": "start, s",
    "ready_bytes": "memory when ready, MB",
    "loaded_bytes": "with 12 streams, MB",
    "drain_seconds": "SIGTERM with 12 streams, s",
}
_found: dict[str, dict[str, float]] = {}


def record(image: str, what: str, figure: float) -> None:
    """Keep one figure of an image; `what` is a key of the table."""
    assert what in _COLUMNS
    _found.setdefault(image, {})[what] = figure
    print(f"{image}: {_COLUMNS[what]} {_worded(what, figure)}")


def write() -> None:
    """Publish, if the run came to everything that is published."""
    if {what for figures in _found.values() for what in figures} == _COLUMNS.keys():
        results = {"made_with": versions(), "machine": machine.describe(len(os.sched_getaffinity(0))), "images": _found}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        refresh(BLOCKS)


def read() -> dict[str, Any]:
    """Return the committed results."""
    results: dict[str, Any] = json.loads(RESULTS.read_text())
    return results


def block() -> str:
    """Return the table of images, in Markdown."""
    rows = [
        [f"`{image}`", *(_worded(what, figures[what]) if what in figures else "-" for what in _COLUMNS)]
        for image, figures in read()["images"].items()
    ]
    return table(["image", *_COLUMNS.values()], rows)


def _worded(what: str, figure: float) -> str:
    return f"{figure / 1e6:.0f}" if what.endswith("_bytes") else f"{figure:.1f}"


BLOCKS = (Block("images", "k8s/README.md", block),)
