"""Footprint against quality, drawn."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

MARKERS = {False: "o", True: "*"}  # unhealed and healed
COLOURS = 20
PLACES = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1))  # of a label: sideways, upwards
ALIGNED = {1: "right", 0: "center", -1: "left"}
SMALL = 5e-4  # a ratio that differs from 1 by this is drawn clearly apart from it


@dataclass(frozen=True)
class Point:
    """One measured model.

    Attributes:
        panel: which of the plots it belongs to.
        curve: which line.
        size_mb: what it occupies, 10^6 bytes.
        ratio: of its perplexity to the dense model's.
    """

    panel: str
    curve: str
    size_mb: float
    ratio: float


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the (size, ratio) that no other is at least as small and as good as, by size."""
    best: list[tuple[float, float]] = []
    for point in sorted(points):
        if not best or point[1] < best[-1][1]:
            best.append(point)
    return best


def draw(points: Sequence[Point], path: Path, description: str) -> None:
    """Draw one panel per group of points, one curve per method and state, with the frontier, as an SVG.

    The description is kept in the file; the same points always give the same bytes.
    """
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys(point.panel for point in sorted(points, key=lambda p: p.panel, reverse=True)))
    figure = Figure(figsize=(10, 5 * len(panels)), layout="constrained")
    for axes, panel in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        _panel(axes, [point for point in points if point.panel == panel])
        axes.set_title(f"gpt2-mini on validation.txt: {panel}")
    save(figure, path, description)


def save(figure: Any, path: Path, description: str) -> None:
    """Write a figure as an SVG that keeps the description; the same figure always gives the same bytes."""
    import matplotlib as mpl

    with mpl.rc_context({"svg.hashsalt": "ttgpt", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None, "Description": description})


def _panel(axes: Any, points: Sequence[Point]) -> None:
    from matplotlib import colormaps

    colours = colormaps[f"tab{COLOURS}"]
    curves = list(dict.fromkeys(point.curve for point in points))
    methods = list(dict.fromkeys(curve.removesuffix(", healed") for curve in curves))
    for curve in curves:
        healed = curve.endswith(", healed")
        found = sorted((point.size_mb, point.ratio) for point in points if point.curve == curve)
        axes.plot(
            *zip(*found, strict=True),
            marker=MARKERS[healed],
            markersize=9 if healed else 5,
            linestyle="--" if healed else "-",
            color=colours(methods.index(curve.removesuffix(", healed")) % COLOURS),
            label=curve,
        )
    best = frontier([(point.size_mb, point.ratio) for point in points])
    axes.plot(*zip(*best, strict=True), color="black", linewidth=9, alpha=0.15, label="frontier", zorder=0)
    scale_ratios(axes)
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.01, 1))


def scale_ratios(axes: Any, margins: tuple[float, float] = (0.05, 0.08)) -> None:
    """Give axes of sizes in MB against ratios of perplexity their scales, which draw ratios close to 1 apart."""
    from matplotlib.ticker import FuncFormatter

    axes.set(xscale="log", xlabel="weights, MB", ylabel="perplexity / dense (small differences are drawn apart)")
    axes.set_yscale("function", functions=(_spread, _gathered))
    axes.margins(*margins)
    axes.yaxis.set_ticks(_ratios(*axes.get_ylim()))
    low, high = axes.get_xlim()
    named = "125" if high > 10 * low else "123456789"  # first digits
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in named else ""))
    axes.grid(which="both", alpha=0.3)


def annotate(axes: Any, labels: Sequence[tuple[str, tuple[float, float], Any]]) -> None:
    """Write texts beside their points, where they cover neither each other nor a point, if there is such a place."""
    axes.figure.draw_without_rendering()
    inside = axes.get_window_extent()
    points = [axes.transData.transform(place) for _, place, _ in labels]
    taken: list[Any] = []
    for text, place, colour in labels:
        for sideways, upwards in PLACES:
            note = axes.annotate(
                text,
                place,
                xytext=(12 * sideways, 12 * upwards),
                textcoords="offset points",
                ha=ALIGNED[-sideways],
                va=("center", "bottom", "top")[upwards],
                color=colour,
                fontsize="small",
            )
            box = note.get_window_extent()
            covers = any(box.overlaps(other) for other in taken) or any(box.contains(*point) for point in points)
            if inside.contains(*box.min) and inside.contains(*box.max) and not covers:
                break
            if (sideways, upwards) != PLACES[-1]:
                note.remove()
        taken.append(box)


def _spread(ratio: Any) -> Any:
    """Return where a ratio is drawn: its distance from 1 on a logarithmic scale, to both sides."""
    return np.arcsinh((np.asarray(ratio) - 1) / SMALL)


def _gathered(place: Any) -> Any:
    return 1 + SMALL * np.sinh(place)


def _ratios(low: float, high: float) -> list[float]:
    """Return at most some dozen ratios between two, close together at 1."""
    near = [0.9, 0.99, 0.999, 1, 1.001, 1.01, 1.1, 2]
    decades = range(1, int(np.log10(max(high, 1))) + 1)
    far = [10.0**k for k in decades[:: max(len(decades) // 6, 1)]]
    return [ratio for ratio in near + far if low <= ratio <= high]
