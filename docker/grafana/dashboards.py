"""Writes the dashboards as JSON: python docker/grafana/dashboards.py OUT. They are changed here, not in Grafana."""

import json
import sys
from pathlib import Path

import footprint
import serving
from grafana_foundation_sdk.cog.encoder import JSONEncoder

DASHBOARDS = {"footprint": footprint.dashboard, "serving": serving.dashboard}


def main(folder: Path) -> None:
    """Write every dashboard into `folder`."""
    for name, dashboard in DASHBOARDS.items():
        text = json.dumps(dashboard().build(), cls=JSONEncoder, indent=1, sort_keys=True)
        (folder / f"{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
