"""How measured values are written for people."""


def figure(value: float, digits: int) -> str:
    """Return `value` with so many digits behind the point, or as a power of ten where that would be long."""
    return f"{value:.{digits}f}" if abs(value) < 1e7 else f"{value:.2e}"
