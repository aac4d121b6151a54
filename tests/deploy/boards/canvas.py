"""Where a dashboard is drawn: places and sizes are in pixels from the upper left corner."""

from dataclasses import dataclass
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from tests.deploy.boards.theme import CANVAS, FAINT, GRID, TEXT

DPI = 72  # so that a point is a pixel
SIZE = 11


@dataclass(frozen=True)
class Box:
    """A rectangle."""

    left: float
    top: float
    width: float
    height: float

    @property
    def right(self) -> float:
        """The right edge."""
        return self.left + self.width

    @property
    def bottom(self) -> float:
        """The lower edge."""
        return self.top + self.height

    def inside(self, left: float = 0, top: float = 0, right: float = 0, bottom: float = 0) -> "Box":
        """Return it without margins."""
        return Box(self.left + left, self.top + top, self.width - left - right, self.height - top - bottom)


class Canvas:
    """A figure of some size.

    Attributes:
        figure: what is drawn so far.
    """

    def __init__(self, width: float, height: float) -> None:
        self.figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor=CANVAS)
        canvas: Any = FigureCanvasAgg(self.figure)
        self._renderer = canvas.get_renderer()
        self._width, self._height = width, height

    def text(self, left: float, middle: float, words: str, *, width: float = 1e9, **style: Any) -> float:
        """Write one line, shortened to a width; return how wide it became."""
        style = {"fontsize": SIZE, "color": TEXT, "va": "center_baseline", "parse_math": False, **style}
        drawn = self.figure.text(left / self._width, 1 - middle / self._height, words, **style)
        shown = words
        while self._wide(drawn) > width and len(shown) > 1:
            shown = shown[:-1]
            drawn.set_text(f"{shown.rstrip()}…")
        return self._wide(drawn)

    def measured(self, words: str, size: float = SIZE) -> float:
        """Return how wide a line would be."""
        drawn = self.figure.text(0, 0, words, fontsize=size, parse_math=False)
        wide = self._wide(drawn)
        drawn.remove()
        return wide

    def panel(self, box: Box, face: str, edge: str) -> None:
        """Draw the background of a panel."""
        corner = self._place(box)
        style: dict[str, Any] = {
            "boxstyle": "round,pad=0,rounding_size=3",
            "linewidth": 1,
            "facecolor": face,
            "edgecolor": edge,
        }
        style["zorder"] = -1  # below all axes
        self.figure.add_artist(FancyBboxPatch(corner, box.width, box.height, transform=None, **style))

    def mark(self, left: float, middle: float, colour: str, *, width: float = 14, height: float = 3) -> None:
        """Draw the mark of a series in a legend."""
        corner = self._place(Box(left, middle - height / 2, width, height))
        self.figure.add_artist(Rectangle(corner, width, height, transform=None, color=colour, linewidth=0))

    def hint(self, left: float, middle: float) -> None:
        """Draw the letter in a circle that says that there is a description."""
        circle = {"boxstyle": "circle,pad=0.25", "facecolor": "none", "edgecolor": FAINT, "linewidth": 0.8}
        self.text(left, middle, "i", color=FAINT, fontsize=SIZE - 3, bbox=circle, ha="center")

    def axes(self, box: Box) -> Any:
        """Return axes with faint lines and no frame."""
        left, bottom = self._place(box)
        rectangle = (left / self._width, bottom / self._height, box.width / self._width, box.height / self._height)
        axes = self.figure.add_axes(rectangle, facecolor="none")
        axes.spines[:].set_visible(False)
        axes.tick_params(which="both", length=0, labelsize=SIZE - 1, labelcolor=FAINT, pad=4)
        axes.grid(color=GRID, linewidth=1)
        axes.set_axisbelow(True)
        return axes

    def _place(self, box: Box) -> tuple[float, float]:
        return box.left, self._height - box.bottom

    def _wide(self, drawn: Any) -> float:
        return float(drawn.get_window_extent(self._renderer).width)
