"""What we promise ourselves, printed after a run beside what was measured; no test asserts it."""

from dataclasses import dataclass

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
    for name, alone in (("ttgpt-int8", 1.35), ("ttgpt-int4", 1.6), ("ttgpt-compressed", 1.6)):
        for kind, sizes in (("decode", results["plan"]["batches"]), ("prefill", results["plan"]["prefills"])):
            for size in sizes:
                wanted = alone if (kind, size) == ("decode", 1) else 1.3
                found.append(Bar(f"{name} x its best peer, {kind} {size}", ratio(results, name, kind, size), wanted))
    for name in ("ttgpt-int8", "ttgpt-int4", "ttgpt-compressed"):
        found.append(Bar(f"{name} share of the roofline, batch 1", roofline_share(results, name, 1), 0.6))
    for name, result in results["http"].items():
        for kind, wanted in (("load", 0.9), ("stream", 0.8)):
            found.append(Bar(f"{name} HTTP {kind} at 8 clients", http_share(results, name, kind, 8), wanted))
        median = result.get("median", {})
        memory = median["rss_bytes"] / 1e6 if median else None
        found.append(Bar(f"{name} RSS of the service, MB", memory, 230, at_most=True))
        found.append(Bar(f"{name} start to first token, s", median.get("start_seconds"), 1.3, at_most=True))
    return found
