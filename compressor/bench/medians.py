"""The median of what several rounds have measured."""

from statistics import median
from typing import Any

Sample = dict[str, Any]


def medians(samples: list[Sample]) -> Sample:
    """Return one sample with the median of every number; what some samples lack is the median of the others."""
    merged: Sample = {}
    for key in dict.fromkeys(key for sample in samples for key in sample):
        values = [sample[key] for sample in samples if key in sample]
        if isinstance(values[0], dict):
            merged[key] = medians(values)
        else:
            merged[key] = values[0] if isinstance(values[0], str) else median(values)
    return merged
