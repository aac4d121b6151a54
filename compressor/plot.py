"""Footprint against quality, drawn."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MARKERS = {False: "o", True: "*"}  # unhealed and healed
COLOURS = 20
FEW_TICKS, MANY_TICKS = (1, 2, 5), (1, 1.1, 1.2, 1.3, 1.4, 1.6, 1.8, 2, 3, 5)  # per decade


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
    import matplotlib as mpl
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys(point.panel for point in sorted(points, key=lambda p: p.panel, reverse=True)))
    figure = Figure(figsize=(10, 5.5 * len(panels)), layout="constrained")
    for axes, panel in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        _panel(axes, [point for point in points if point.panel == panel])
        axes.set_title(f"gpt2-mini on validation.txt: {panel}")
    with mpl.rc_context({"svg.hashsalt": "ttgpt", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None, "Description": description})


def _panel(axes: Any, points: Sequence[Point]) -> None:
    from matplotlib import colormaps
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

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
    axes.set(xscale="log", yscale="log", xlabel="weights, MB", ylabel="perplexity, times dense")
    for axis in (axes.xaxis, axes.yaxis):
        low, high = axis.get_view_interval()
        axis.set_major_locator(LogLocator(subs=FEW_TICKS if high > 10 * low else MANY_TICKS))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.grid(which="both", alpha=0.3)
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.01, 1))
