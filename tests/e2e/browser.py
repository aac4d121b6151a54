"""Debian's Chromium, driven by Playwright's client, and what goes wrong in a tab of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.tools import debian_program, not_run

WAIT_MS = 20_000


@contextmanager
def chromium() -> Iterator[Any]:
    """Run a headless Chromium until the block ends; without it, or its client, the test is not run."""
    program = debian_program("chromium", "chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        not_run("the extra browser: pip install '.[browser]'")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program)
        yield browser
        browser.close()


class Tab:
    """A tab with storage of its own, on the page of the service at `url`.

    Attributes:
        page: Playwright's.
        complaints: errors and warnings of the console, exceptions, and requests to any other host.
    """

    def __init__(self, browser: Any, url: str, **context: Any) -> None:
        self.url = url.rstrip("/") + "/"
        self.page = browser.new_context(**context).new_page()
        self.page.set_default_timeout(WAIT_MS)
        self.complaints: list[str] = []
        self.page.on("console", self._listen)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", self._watch)

    def open(self, ready: str = "#write:enabled") -> None:
        """Open the page and wait for what matches `ready`."""
        self.page.goto(self.url)
        self.page.wait_for_selector(ready)

    def write(self, **fields: str | int) -> None:
        """Fill in fields by their ids, write, and wait until every text is coloured."""
        for name, value in fields.items():
            self.page.fill(f"#{name}", str(value))
        self.page.click("#write")
        self.coloured()

    def coloured(self) -> None:
        """Wait until the last text is coloured; all are at the same time."""
        self.page.wait_for_selector(".panel:last-child details:not([hidden])")

    def violations(self) -> list[str]:
        """Return which of axe's rules the page breaks, and where."""
        from axe_playwright_python.sync_playwright import Axe

        broken = Axe().run(self.page).response["violations"]
        return [f"{rule['id']}: {node['html']}" for rule in broken for node in rule["nodes"]]

    def first_paint_ms(self) -> float:
        """Return when something was seen, from the start of the navigation."""
        paint = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
        return float(self.page.evaluate(paint))

    def _listen(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def _watch(self, request: Any) -> None:
        if not request.url.startswith(self.url):
            self.complaints.append(f"asked {request.url}")
