"""Grafana's units: how a number is written in each."""

from collections.abc import Callable, Sequence
from math import floor, isfinite, log10

Scale = Sequence[tuple[float, str]]
COUNTS: Scale = ((1, ""), (1e3, " K"), (1e6, " Mil"), (1e9, " Bil"), (1e12, " Tri"))
BYTES: Scale = ((1, " B"), (1e3, " kB"), (1e6, " MB"), (1e9, " GB"), (1e12, " TB"))
TIMES: Scale = ((1e-9, " ns"), (1e-6, " µs"), (1e-3, " ms"), (1, " s"), (60, " mins"), (3600, " hours"))
HIGHEST_DIGIT = 2.25  # from which on one decimal more is shown


def rounded(value: float) -> str:
    """Return a number with as many decimals as its size asks for."""
    if not value or float(value).is_integer():
        return f"{value:.0f}"
    decimals = 1 - floor(log10(abs(value)))
    return f"{value:.{max(decimals + (abs(value) * 10**decimals > HIGHEST_DIGIT), 0)}f}"


def _scaled(scale: Scale, value: float, suffix: str = "") -> str:
    factor, name = max((step for step in scale if step[0] <= abs(value)), default=scale[0])
    return rounded(round(value / factor, 9)) + name + suffix if value else f"0{'' if scale is COUNTS else name}{suffix}"


UNITS: dict[str, Callable[[float], str]] = {
    "short": lambda value: _scaled(COUNTS, value),
    "reqps": lambda value: _scaled(COUNTS, value, " req/s"),
    "percentunit": lambda value: f"{rounded(round(100 * value, 9))}%",
    "decbytes": lambda value: _scaled(BYTES, value),
    "s": lambda value: _scaled(TIMES, value) if value else "0 s",
}


def written(unit: str, value: float | None) -> str:
    """Return a value in a unit; what is missing is a dash.

    Raises:
        ValueError: if the unit is not known here.
    """
    if unit not in UNITS:
        raise ValueError(f"unit: {unit} is none of {', '.join(UNITS)}; add it to tests/deploy/boards/units.py")
    return UNITS[unit](value) if value is not None and isfinite(value) else "-"
