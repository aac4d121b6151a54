"""Pages in Markdown with generated blocks, each between `<!-- generated: NAME -->` and `<!-- end -->`."""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.storage import durable
from compressor.storage.run_folder import require_files, require_writable

ROOT = Path(__file__).parents[1]  # of the checkout, where the pages are
MISSING = "Not measured yet."


@dataclass(frozen=True)
class Block:
    """A part of a page that is made from results.

    Attributes:
        name: in the comment above it.
        page: the file, relative to the checkout.
        text: makes its Markdown.
    """

    name: str
    page: str
    text: Callable[[], str]


def read(path: Path) -> dict[str, Any] | None:
    """Return the committed results in a file, or None where nothing was measured yet."""
    results: dict[str, Any] | None = json.loads(path.read_text()) if path.is_file() else None
    return results


def told(path: Path, tell: Callable[[dict[str, Any]], str]) -> Callable[[], str]:
    """Return what makes a block of the committed results in a file, or says that there are none yet."""

    def text() -> str:
        results = read(path)
        return MISSING if results is None else tell(results)

    return text


def refreshed(blocks: Iterable[Block], root: Path = ROOT) -> dict[Path, str]:
    """Return every page that has one of `blocks`, with those made anew.

    Raises:
        ValueError: if a page lacks its block.
    """
    pages: dict[Path, str] = {}
    for block in blocks:
        path = root / block.page
        pages[path] = _with_block(pages.get(path) or path.read_text(), block, block.text())
    return pages


def refresh(blocks: Iterable[Block], root: Path = ROOT) -> None:
    """Write what `refreshed` returns."""
    for path, text in refreshed(blocks, root).items():
        durable.write(path, text.encode())


def check(blocks: Iterable[Block], root: Path = ROOT) -> None:
    """Refuse at once what `refresh` would refuse in the end; raises ValueError."""
    for block in blocks:
        path = root / block.page
        require_files("pages", [path])
        require_writable("pages", path.parent)
        _with_block(path.read_text(), block, "")


def table(head: list[str], rows: list[list[str]], *, left: int = 1) -> str:
    """Return a table in Markdown, its first `left` columns aligned to the left and the others to the right."""
    lines = [head, ["---"] * left + ["---:"] * (len(head) - left), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _with_block(page: str, block: Block, text: str) -> str:
    match = re.search(rf"(?<=<!-- generated: {block.name} -->\n).*?(?=<!-- end -->)", page, re.DOTALL)
    if match is None:
        raise ValueError(f"pages: {block.page} has no block <!-- generated: {block.name} --> ... <!-- end -->")
    return f"{page[: match.start()]}{text}\n{page[match.end() :]}"
