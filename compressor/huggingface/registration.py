"""Registers the classes of `auto` with transformers when it is imported, before or after this.

Importing transformers' models takes seconds, which reading the embedded checkpoint need not wait for.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

TRANSFORMERS = "transformers"


class _AfterImport(MetaPathFinder):
    """Finds transformers as the other finders do, and has the classes registered once its code has run."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != TRANSFORMERS:
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        spec = next((found for finder in others if (found := finder.find_spec(name, path, target))), None)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def run_and_register(module: ModuleType) -> None:
            run(module)
            _register()

        spec.loader.exec_module = run_and_register  # type: ignore[method-assign]
        return spec


def register() -> None:
    """Register the classes now if transformers is there, else when it comes."""
    if TRANSFORMERS in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _AfterImport())


def _register() -> None:
    import_module("compressor.huggingface.auto").register()
