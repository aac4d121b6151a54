"""What `ttgpt bench DIR... --json > tests/benchmarks/results/bench.json` has measured, as a table."""

from pathlib import Path
from typing import Any

from compressor.bench.load import Load
from compressor.bench.report import head, row
from compressor.pages import Block, table, told

RESULTS = Path(__file__).parent / "results" / "bench.json"


def block(results: dict[str, Any]) -> str:
    """Return the table and what it was measured on, in Markdown."""
    load, machine = Load(**results["load"] | {"clients": tuple(results["load"]["clients"])}), results["machine"]
    rows = [row(model, load) for model in results["models"]]
    asked = f"Prompts have {load.prompt_tokens} tokens and answers {load.new_tokens}"
    where = f"{machine['cores']} cores of {machine['processor']}, which the clients share"
    return (
        f"{table(head(load.clients), rows)}\n\n"
        "*Ready* and *peak* are resident memory, MB. *First* and *next* are the times to the first token and to every\n"
        f"later one with {load.usual} clients. {asked}; medians of {load.rounds} rounds on\n{where}, load average "
        f"{machine['load_average']:.0f}."
    )


BLOCKS = (Block("bench", "compressor/README.md", told(RESULTS, block)),)
