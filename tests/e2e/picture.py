"""Pictures of the page for the README: `python -m tests.e2e.picture DIR...` serves artefacts and draws both."""

import argparse
import io
import tempfile
from pathlib import Path

from PIL import Image

from tests.e2e.browser import Tab, chromium
from tests.e2e.replica import replica

PICTURES = {scheme: Path(__file__).parent / "results" / f"page-{scheme}.png" for scheme in ("light", "dark")}
VIEWPORT = {"width": 1100, "height": 900}
COLOURS = 64
MEMORY_MS = 20_000  # for a line of the memory that can be seen


def draw(url: str) -> None:
    """Draw the page of the service at `url` with two texts, in light and dark."""
    with chromium() as browser:
        for scheme, path in PICTURES.items():
            tab = Tab(browser, url, color_scheme=scheme, viewport=VIEWPORT)
            tab.open()
            tab.page.wait_for_timeout(MEMORY_MS)
            tab.write()
            tab.page.wait_for_timeout(MEMORY_MS)
            tab.page.mouse.click(1, 1)
            picture = Image.open(io.BytesIO(tab.page.screenshot(full_page=True)))
            picture.convert("RGB").quantize(COLOURS).save(path, optimize=True)


def main() -> None:
    """Serve and draw."""
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.picture", description=__doc__)
    parser.add_argument("artifacts", type=Path, nargs="+", metavar="DIR")
    artifacts = parser.parse_args().artifacts
    with tempfile.TemporaryDirectory() as folder, replica(artifacts, Path(folder) / "log") as served:
        draw(served.url)


if __name__ == "__main__":
    main()
