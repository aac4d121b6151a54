"""Grafana's dark theme."""

from collections.abc import Sequence
from typing import Any

CANVAS, PANEL, BORDER = "#111217", "#181b1f", "#2a2d33"
TEXT, FAINT, GRID = "#ccccdc", "#8e8e9b", "#2c2e33"
_SHADES = ("dark-", "semi-dark-", "", "light-", "super-light-")
_HUES = {
    "red": "#C4162A #E02F44 #F2495C #FF7383 #FFA6B0",
    "orange": "#FA6400 #FF780A #FF9830 #FFB357 #FFCB7D",
    "yellow": "#E0B400 #F2CC0C #FADE2A #FFEE52 #FFF899",
    "green": "#37872D #56A64B #73BF69 #96D98D #C8F2C2",
    "blue": "#1F60C4 #3274D9 #5794F2 #8AB8FF #C0D8FF",
    "purple": "#8F3BB8 #A352CC #B877D9 #CA95E5 #DEB6F2",
}
COLOURS = {
    f"{shade}{hue}": value
    for hue, values in _HUES.items()
    for shade, value in zip(_SHADES, values.split(), strict=True)
}
_CLASSIC = ("green", "semi-dark-yellow", "light-blue", "semi-dark-orange", "red", "blue", "purple")
PALETTE = [
    *(COLOURS[name] for name in _CLASSIC),
    *[
        "#705DA0",
        "#37872D",
        "#FADE2A",
        "#447EBC",
        "#C15C17",
        "#890F02",
        "#0A437C",
        "#6D1F62",
        "#584477",
        "#B7DBAB",
        "#F4D598",
        "#70DBED",
    ],
]


def colour(name: str) -> str:
    """Return the colour that a dashboard calls so.

    Raises:
        ValueError: if it is not known here.
    """
    if name not in COLOURS:
        raise ValueError(f"colour: {name} is none of {', '.join(COLOURS)}")
    return COLOURS[name]


def of_series(settings: dict[str, Any], name: str, index: int) -> str:
    """Return the colour of a series by the mode that its panel sets: fixed, by its name, or by its place."""
    chosen = settings.get("color", {"mode": "palette-classic"})
    if chosen["mode"] == "fixed":
        return colour(chosen["fixedColor"])
    if chosen["mode"] == "palette-classic-by-name":
        return PALETTE[_hash(name) % len(PALETTE)]
    return PALETTE[index % len(PALETTE)]


def of_value(steps: Sequence[dict[str, Any]], value: float | None) -> str:
    """Return the colour of the highest threshold that a value has reached."""
    reached = [step for step in steps if step["value"] is None or (value is not None and value >= step["value"])]
    return colour(reached[-1]["color"])


def _hash(name: str) -> int:
    code = 0
    for letter in name:
        code = (31 * code + ord(letter)) & 0xFFFFFFFF
    return abs(code - (code >> 31 << 32))
