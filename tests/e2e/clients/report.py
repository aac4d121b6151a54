"""What other people's clients said, as a table of the service's page."""

from pathlib import Path
from typing import Any

from compressor.pages import Block, table, told

RESULTS = Path(__file__).parents[1] / "results" / "clients.json"


def _table(found: dict[str, Any]) -> str:
    rows = [[name, client["version"], client["result"]] for name, client in found.items()]
    return table(["client", "version", ""], rows)


BLOCKS = (Block("clients", "service/README.md", told(RESULTS, _table)),)
