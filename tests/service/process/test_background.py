"""Nothing that runs beside the requests ends unnoticed."""

import ast
import asyncio
from math import inf
from pathlib import Path

import pytest

from service.engine.engine import Engine
from service.engine.jobs import Job
from service.metrics import Metrics
from service.process import background
from service.settings import Settings

SERVICE = Path(background.__file__).parents[1]
# What is started there is awaited or cancelled by the request, or the server's life, that started it.
AWAITED = {"background.py", "streams.py", "completions.py", "front.py"}


class Panic(BaseException):
    """What a library in Rust raises."""


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(3), KeyboardInterrupt(), Panic()])
def test_whatever_ends_a_thread_is_told(error: BaseException) -> None:
    def work() -> None:
        raise error

    told: list[BaseException] = []
    thread = background.thread("work", work, told.append)
    thread.start()
    thread.join()
    assert told == [error]


@pytest.mark.parametrize("error", [TypeError("no such thing"), Panic()])
def test_a_task_that_fails_is_logged_and_started_again(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    began = 0

    async def work() -> None:
        nonlocal began
        began += 1
        if began == 1:
            raise error
        await asyncio.sleep(3600)

    async def test() -> None:
        task = background.task("work", work)
        while began < 2:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(test())
    assert [(line.levelname, vars(line)["task"]) for line in caplog.records] == [("ERROR", "work")]


class Panicking(Job[int]):
    def step(self) -> bool:
        raise Panic


def test_the_death_of_the_engine_is_logged_and_seen_by_livez(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine(settings, Metrics())

    async def test() -> None:
        engine.start()
        engine.submit(Panicking("tiny-fp32"))
        while engine.round_seconds != inf:
            await asyncio.sleep(0.01)

    asyncio.run(test())
    assert [line.levelname for line in caplog.records] == ["CRITICAL"]


@pytest.mark.parametrize("path", sorted(SERVICE.rglob("*.py")), ids=lambda path: path.name)
def test_threads_and_tasks_begin_where_their_end_is_noticed(path: Path) -> None:
    begun = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    assert path.name in AWAITED or not begun & {"create_task", "ensure_future", "Thread", "Timer"}
