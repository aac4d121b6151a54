"""What a budget has measured, kept piece by piece, so that no later run of the same model measures it again."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.formats import Format, Spec, from_tensors
from compressor.formats.base import below
from compressor.progress import Echo, ignore
from compressor.recipes import checkpoint
from compressor.runtime import kept

Row = tuple[dict[str, Any], Format]  # what is said about a form, as JSON, and the form itself


@dataclass(frozen=True)
class Journal:
    """A folder with one file per piece.

    Attributes:
        folder: of the files, bounded as `compressor.runtime.kept` says if it is that one.
        identity: of what is measured, see `checkpoint.digest`.
        echo: gets a line about what cannot be kept.
    """

    folder: Path
    identity: str
    echo: Echo = ignore

    def read(self, name: str) -> list[Row] | None:
        """Return what was kept of a piece, or None; a damaged file counts as none."""
        try:
            found = checkpoint.read(self._path(name), self.identity)
        except ValueError:
            return None
        if found is None:
            return None
        tensors, about = found
        specs = [Spec.model_validate(spec) for spec in about["specs"]]
        forms = [from_tensors(below(tensors, str(i)), spec) for i, spec in enumerate(specs)]
        return list(zip(about["rows"], forms, strict=True))

    def write(self, name: str, rows: Sequence[Row]) -> bool:
        """Keep the rows of a piece; where that fails, say so and return False."""
        tensors = {f"{i}.{key}": t for i, (_, form) in enumerate(rows) for key, t in form.tensors().items()}
        about = {"rows": [row for row, _ in rows], "specs": [form.spec().model_dump() for _, form in rows]}
        try:
            checkpoint.write(self._path(name), self.identity, tensors, about)
            kept.trim()
        except OSError as error:
            self.echo(f"cannot keep what was measured in {self.folder} ({error.strerror}); continues without")
            return False
        return True

    def _path(self, name: str) -> Path:
        return self.folder / f"measured-{self.identity:.16}-{name}.safetensors"
