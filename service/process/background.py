"""Work beside the requests, which no request awaits. None of it can end unnoticed.

A thread reports what ended it to its starter: the process then ends, or /livez says that it is not alive. A task
is started again, since all that tasks do is to keep Redis at hand, and that may fail at any time.
"""

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from service.process.logs import LOG

RESTART_SECONDS = 1.0


def thread(name: str, work: Callable[[], None], on_death: Callable[[BaseException], None]) -> threading.Thread:
    """Return a thread, not started yet, that does `work` and tells `on_death` what it raises, whatever that is."""

    def run() -> None:
        try:
            work()
        except BaseException as error:
            on_death(error)

    return threading.Thread(target=run, name=name, daemon=True)


def task(name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Task[None]:
    """Start `work` on the running event loop, and again whenever it has failed, until it is cancelled."""

    async def run() -> None:
        while True:
            try:
                await work()
            except asyncio.CancelledError:
                raise
            except BaseException:
                LOG.exception("a background task failed and is started again", extra={"task": name})
            await asyncio.sleep(RESTART_SECONDS)

    return asyncio.create_task(run(), name=name)


def exit_after(seconds: float) -> None:
    """End the process then, if it still runs, whatever it may hang in."""

    def leave() -> None:
        LOG.error("did not stop in time")
        os._exit(1)

    timer = threading.Timer(seconds, leave)
    timer.daemon = True
    timer.start()
