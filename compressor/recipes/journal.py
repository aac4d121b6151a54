"""What a budget has found, kept file by file, so that no later run of the same model finds it again."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from compressor.progress import Echo, ignore
from compressor.recipes import checkpoint
from compressor.runtime import kept


@dataclass
class Journal:
    """A folder of files.

    Attributes:
        folder: of the files, bounded as `compressor.runtime.kept` says if it is that one.
        identity: of all that decides about what is found, see `checkpoint.digest`.
        echo: gets a line, once, about what cannot be kept.
    """

    folder: Path
    identity: str
    echo: Echo = ignore
    _is_full: bool = field(default=False, init=False)

    def read(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the tensors that were kept, and what is said about them, or None; a damaged file counts as none."""
        try:
            return checkpoint.read(self._path(name), self.identity)
        except ValueError:
            return None

    def has(self, name: str) -> bool:
        """Return whether something was kept, which may be damaged."""
        return self._path(name).is_file()

    def write(self, name: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        """Keep tensors, and what is said about them as JSON; where that fails, say so."""
        if self._is_full:
            return
        try:
            checkpoint.write(self._path(name), self.identity, tensors, about)
            kept.trim()
        except OSError as error:
            self._is_full = True
            self.echo(f"cannot keep what was found in {self.folder} ({error.strerror}); continues without")

    def _path(self, name: str) -> Path:
        return self.folder / f"budget-{self.identity:.16}-{name}.safetensors"
