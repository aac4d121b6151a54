"""What the cache of contractions saves, as the README shows it. Nothing here measures."""

import json
from pathlib import Path
from typing import Any

from compressor.experiments.tables import with_block

CACHE = Path(__file__).parent / "results" / "cache.json"
Results = dict[str, Any]


def read() -> Results | None:
    """Return the committed results, or None where nothing was measured yet."""
    results: Results | None = json.loads(CACHE.read_text()) if CACHE.is_file() else None
    return results


def refreshed(readme: str, results: Results | None) -> str:
    """Return the README with the block made anew.

    Raises:
        ValueError: if there is no such block.
    """
    return with_block(readme, "cache", "Not measured yet." if results is None else tables(results))


def tables(results: Results) -> str:
    """Return all figures, in Markdown."""
    lost = [row for row in results["rows"] if row["redis_us"] > row["contraction_us"]]
    rows = [_row(row) for row in results["rows"]]
    starts = [
        f"| {s['table']} | {s['products_mb']:g} | {s['alone_ms']:g} | {s['empty_redis_ms']:g} | "
        f"{s['warm_redis_ms']:g} |"
        for s in results["starts"]
    ]
    return "\n".join(
        [
            "Microseconds for so many different rows, the fastest of several turns, Redis on the same machine "
            f"(`token_mps` of rank {results['ranks']['token_mps']}, `tt_matrix` of rank "
            f"{results['ranks']['tt_matrix']}; the machine's load average was {results['load_average'][0]:g} to "
            f"{results['load_average'][1]:g}):",
            "",
            "| table | format | rows | contracted | from this process | from Redis |",
            "| --- | --- | ---: | ---: | ---: | ---: |",
            *rows,
            "",
            f"Redis loses in {len(lost)} of {len(rows)} cases even without a network; there `auto` passes it by.",
            "What a replica with a `tt_matrix` head waits for its products and for timing its rows when it starts, in",
            "milliseconds:",
            "",
            "| table | products, MB | no Redis | empty Redis | warm Redis |",
            "| --- | ---: | ---: | ---: | ---: |",
            *starts,
        ]
    )


def _row(row: Results) -> str:
    figures = " | ".join(f"{row[way]:,.0f}" for way in ("contraction_us", "local_us", "redis_us"))
    return f"| {row['table']} | `{row['format']}` | {row['rows']} | {figures} |"
