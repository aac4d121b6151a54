"""What the cache of contractions saves, as the page of the service shows it. Nothing here measures."""

from pathlib import Path
from typing import Any

from compressor.pages import Block, table, told

CACHE = Path(__file__).parent / "results" / "cache.json"
Results = dict[str, Any]


def _figures(results: Results) -> str:
    """Return all figures, in Markdown."""
    ranks, load = results["ranks"], results["load_average"]
    lost = [row for row in results["rows"] if row["redis_us"] > row["contraction_us"]]
    starts = [
        [start["table"], *(f"{start[key]:g}" for key in ("products_mb", "alone_ms", "empty_redis_ms", "warm_redis_ms"))]
        for start in results["starts"]
    ]
    return "\n".join(
        [
            "Microseconds for a number of different rows, the fastest of several turns, Redis on the same machine",
            f"(`token_mps` of rank {ranks['token_mps']}, `tt_matrix` of rank {ranks['tt_matrix']}; load average "
            f"{load[0]:g} to {load[1]:g}):",
            "",
            table(
                ["table", "format", "rows", "contracted", "from this process", "from Redis"],
                [_row(row) for row in results["rows"]],
                left=2,
            ),
            "",
            f"Redis is slower in {len(lost)} of {len(results['rows'])} cases even without a network; there `auto` "
            "bypasses it.",
            "Start of a replica with a `tt_matrix` head: milliseconds for its products:",
            "",
            table(["table", "products, MB", "no Redis", "empty Redis", "warm Redis"], starts),
        ]
    )


def _row(row: Results) -> list[str]:
    figures = [f"{row[way]:,.0f}" for way in ("contraction_us", "local_us", "redis_us")]
    return [row["table"], f"`{row['format']}`", f"{row['rows']}", *figures]


BLOCKS = (Block("cache", "service/README.md", told(CACHE, _figures)),)
