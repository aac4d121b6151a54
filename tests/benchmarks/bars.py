"""What we promise ourselves, printed after a run beside what was measured; no test asserts it."""

from dataclasses import dataclass

from tests.benchmarks.engines import EQUAL_BITS, REFERENCE
from tests.benchmarks.report import Results, http_share, ratio, roofline_share


@dataclass(frozen=True)
class Bar:
    """A figure and what it should be; `value` is None where it was not measured."""

    text: str
    value: float | None
    wanted: float
    at_most: bool = False

    def __str__(self) -> str:
        if self.value is None:
            return f"?  {self.text}: not measured"
        met = self.value <= self.wanted if self.at_most else self.value >= self.wanted
        sign = "at most" if self.at_most else "at least"
        return f"{'ok' if met else 'NO'} {self.text}: {self.value:.2f}, {sign} {self.wanted:g}"


def bars(results: Results) -> list[Bar]:
    """Return every bar."""
    found = []
    for name, batch, wanted in (
        ("ttgpt-int8", 1, 2.5),
        ("ttgpt-compressed", 1, 3.5),
        ("ttgpt-int8", 8, 2.2),
        ("ttgpt-compressed", 8, 2.8),
    ):
        found.append(Bar(f"{name} x {REFERENCE}, batch {batch}", ratio(results, name, REFERENCE, batch), wanted))
    for name, bits in (("ttgpt-int8", 8), ("ttgpt-int4", 4), ("ttgpt-compressed", 4)):
        for batch in results["plan"]["batches"]:
            peer = EQUAL_BITS[bits]
            found.append(Bar(f"{name} x {peer}, batch {batch}", ratio(results, name, peer, batch), 1.3))
    for name in ("ttgpt-int8", "ttgpt-int4", "ttgpt-compressed"):
        found.append(Bar(f"{name} share of the roofline, batch 1", roofline_share(results, name, 1), 0.6))
    for name, result in results["http"].items():
        for kind, wanted in (("load", 0.9), ("stream", 0.8)):
            found.append(Bar(f"{name} HTTP {kind} at 8 clients", http_share(results, name, kind, 8), wanted))
        median = result.get("median", {})
        memory = median["rss_bytes"] / 1e6 if median else None
        found.append(Bar(f"{name} RSS of the service, MB", memory, 400, at_most=True))
        found.append(Bar(f"{name} start to first token, s", median.get("start_seconds"), 4, at_most=True))
    return found
