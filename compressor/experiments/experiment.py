"""An experiment: a small file of differences from a plain run, and what came out of it.

Its result is a JSON file of the same name in results/, which is rerun only when it is missing or out of date.
"""

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from compressor.experiments.workbench import Workbench
from compressor.runtime.version import versions
from compressor.storage import durable

FOLDER = Path(__file__).parent
DEFINITIONS, RESULTS = FOLDER / "definitions", FOLDER / "results"


@dataclass(frozen=True, kw_only=True)
class Experiment(ABC):
    """One row of a table.

    Attributes:
        kind: the folder of its definition and its result.
        name: of its files.
        label: what the table calls it.
        books: whether it needs books.
    """

    kind: ClassVar[str]
    name: str
    label: str
    books: bool = False

    @abstractmethod
    def inputs(self) -> dict[str, Any]:
        """Return all that the result depends on; a result with other inputs is out of date."""

    @abstractmethod
    def is_whole(self, result: dict[str, Any]) -> bool:
        """Return whether nothing is missing in a result."""

    @abstractmethod
    def run(self, bench: Workbench) -> dict[str, Any]:
        """Return the result."""

    def result(self) -> dict[str, Any] | None:
        """Return the committed result, or None where it is missing or out of date.

        What was measured before versions were kept has null for them.
        """
        if not self._path.is_file():
            return None
        found: dict[str, Any] = json.loads(self._path.read_text())
        return found if found["inputs"] == self.inputs() and found["made_with"] in (None, versions()) else None

    def write(self, result: dict[str, Any]) -> None:
        """Write the result."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_result(f"{self.kind}/{self.name}", result)

    @property
    def _path(self) -> Path:
        return RESULTS / self.kind / f"{self.name}.json"


def definitions(kind: str) -> dict[str, dict[str, Any]]:
    """Return what the definitions of a kind say, by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted((DEFINITIONS / kind).glob("*.json"))}


def write_result(name: str, result: dict[str, Any]) -> None:
    """Write what was measured, and with which versions, to a file of that name in results/."""
    result = {"made_with": versions(), **result}
    durable.write(RESULTS / f"{name}.json", (json.dumps(result, indent=2, sort_keys=True) + "\n").encode())
