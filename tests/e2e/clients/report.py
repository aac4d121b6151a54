"""What other people's clients said, as a table of the service's page."""

import json
from pathlib import Path

from compressor.pages import ROOT, Block, table

RESULTS = Path(__file__).parents[1] / "results" / "clients.json"


def _table() -> str:
    found = json.loads(RESULTS.read_text())
    rows = [[name, client["version"], client["result"]] for name, client in found.items()]
    return table(["client", "version", ""], rows)


BLOCKS = [Block(ROOT / "service/README.md", "clients", _table)]
