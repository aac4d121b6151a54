"""`ttgpt bench` on real services: those that it starts, and those that run."""

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from compressor.bench import streams
from compressor.bench.endpoint import KEY, Endpoint
from compressor.bench.load import REQUESTS, Load
from compressor.bench.rounds import measure
from compressor.bench.service import served
from tests.compressor.command import refused
from tests.conftest import TINY
from tests.service.conftest import wait_until

SECONDS = 120
SHORT = ("--prompt-tokens", "8", "--new-tokens", "8", "--rounds", "1", "--clients", "1,2")
LOAD = Load(clients=(1, 2), prompt_tokens=8, new_tokens=8, rounds=2)
SECRET = "a long and random key"  # noqa: S105 - of this test


@pytest.fixture(scope="module")
def url(tiny_artifact: Path) -> Iterator[str]:
    """A service that wants a key, and accepts the tokens of one request."""
    settings = {"TTGPT_API_KEY_HASHES": hashlib.sha256(SECRET.encode()).hexdigest(), "TTGPT_MAX_TOKENS": "24"}
    with served(tiny_artifact, SECONDS, os.environ | settings) as (_, address):
        yield address


def bench(*arguments: object, start: str = "pass") -> subprocess.CompletedProcess[str]:
    code = f"import sys; {start}; from compressor.cli import main; main(['bench', *sys.argv[1:]])"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False
    )


def _check(row: dict[str, Any]) -> None:
    """Every figure is there and positive, and percentiles are in order."""
    assert row["peak_bytes"] >= row["ready_bytes"] > 0
    for measured in row["load"].values():
        assert measured["tokens_per_s"] > 0
        for latency in ("first_token_ms", "inter_token_ms"):
            assert measured[latency]["p95"] >= measured[latency]["p50"] > 0


def test_a_folder_is_served_meanwhile(tiny_artifact: Path, tmp_path: Path) -> None:
    run = bench(tiny_artifact, *SHORT, "--json", "--plot", tmp_path / "a.svg")
    assert (run.returncode, run.stderr) == (0, "")
    (row,) = json.loads(run.stdout)["models"]
    _check(row)
    assert (row["name"], row["perplexity_ratio"]) == (tiny_artifact.name, 1.25)
    assert row["load"].keys() == {"1", "2"}
    assert row["start_seconds"] > 0
    assert "<svg" in (tmp_path / "a.svg").read_text()


def test_a_service_that_runs_is_measured_and_goes_on(tiny_artifact: Path) -> None:
    with served(tiny_artifact, SECONDS, os.environ) as (process, address):
        running, started = measure([address, str(tiny_artifact)], LOAD)
        assert process.poll() is None  # it is not ours to end
    assert running.model == started.model
    assert "start_seconds" not in running.figures
    for result in (running, started):
        _check(result.figures)


def test_a_service_that_refuses_is_told_in_its_own_words(url: str) -> None:
    alone = Load(clients=(1,), prompt_tokens=8, new_tokens=8, rounds=1)
    (result,) = measure([url], alone, SECRET)
    _check(result.figures)
    with pytest.raises(ValueError, match=f"answered 401: .*{KEY}"):
        measure([url], alone)
    with pytest.raises(ValueError, match=r"answered 429: .*fewer clients"):
        measure([url], LOAD, SECRET)
    assert SECRET not in repr(Endpoint(url, SECRET))


def test_settings_of_this_shell_are_not_those_of_the_service(
    tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTGPT_MAX_TOKENS", "1")
    monkeypatch.setenv(KEY, "of another service")
    (result,) = measure([str(tiny_artifact)], LOAD)
    _check(result.figures)


def test_without_matplotlib_there_is_a_table_and_a_note(tiny_artifact: Path, tmp_path: Path) -> None:
    run = bench(tiny_artifact, *SHORT, "--plot", tmp_path / "a.svg", start="sys.modules['matplotlib'] = None")
    assert run.returncode == 0
    assert tiny_artifact.name in run.stdout
    assert "ttgpt[compressor]" in run.stderr
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_ends_the_service_too(tiny_artifact: Path) -> None:
    command = [sys.executable, "-m", "compressor", "bench", str(tiny_artifact), *SHORT, "--rounds", "100"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        wait_until(lambda: children.read_text().split())
        (child,) = children.read_text().split()
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=SECONDS)
    assert (process.returncode, told) == (130, "interrupted\n")
    assert not Path(f"/proc/{child}").exists()


class Broken(BaseHTTPRequestHandler):
    """Sends one token, and then nothing or an error."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'data:{"index":1}\n\n')
        self.wfile.write(b'data:{"error":"the request failed"}\n\n' if "fails" in self.path else b"")

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def answering(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("path", "problem"), [("fails", "broke off: .*request failed"), ("ends", r"2 tokens .* \{1\} came")]
)
def test_a_stream_that_breaks_off_is_no_figure(path: str, problem: str) -> None:
    with answering(Broken) as address, pytest.raises(RuntimeError, match=problem):
        asyncio.run(streams.measure(Endpoint(f"{address}/{path}"), [[b"{}"]], 2))


class Elsewhere(BaseHTTPRequestHandler):
    """Leads every client to another path."""

    asked: list[str] = []  # noqa: RUF012 - of the one server

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(307)
        self.send_header("Location", "/elsewhere")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_only_what_was_given_is_fetched() -> None:
    with answering(Elsewhere) as address, pytest.raises(ValueError, match="answered 307"):
        measure([f"{address}/prefix/"], LOAD)
    assert Elsewhere.asked == ["/prefix/info"]


MISTAKES = {
    "nobody listens": (["http://127.0.0.1:9"], "http://127.0.0.1:9: does not answer"),
    "another scheme": (["ftp://127.0.0.1"], "url must begin with http:// or https://"),
    "no host": (["http://"], "name a host"),
    "no artefact": (["./nowhere"], "./nowhere: "),
    "no place": ([], "URL|DIR"),
    "no clients": (["{artifact}", "--clients", "0"], "clients must be between 1 and 512, not 0"),
    "many clients": (["{artifact}", "--clients", "513"], "clients must be between 1 and 512, not 513"),
    "clients twice": (["{artifact}", "--clients", "8,8"], "different numbers"),
    "no number": (["{artifact}", "--clients", "few"], "clients must be numbers such as 1,8,32, not 'few'"),
    "no rounds": (["{artifact}", "--rounds", "0"], "rounds must be between 1 and 100, not 0"),
    "no token": (["{artifact}", "--prompt-tokens", "0"], "prompt_tokens must be between 1 and"),
    "one new token": (["{artifact}", "--new-tokens", "1"], "new_tokens must be between 2 and"),
    "no room": (["{artifact}", "--new-tokens", "64"], f"must be at most {TINY.n_positions}, its context, not 32 + 64"),
    "no picture": (["{artifact}", "--plot", "a.gif"], "plot must end in one of .svg, .png, .pdf, not a.gif"),
    "a picture nowhere": (["{artifact}", "--plot", "nowhere/a.svg"], "plot"),
    "a picture that exists": (["{artifact}", "--plot", "{taken}"], "exists; choose another name or add --force"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line(
    case: str, tiny_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / "taken.svg"
    taken.touch()
    arguments, message = MISTAKES[case]
    given = [argument.format(artifact=tiny_artifact, taken=taken) for argument in arguments]
    assert message in refused(["bench", *given], capsys)


def test_a_service_takes_only_so_many_clients(tiny_artifact: Path) -> None:
    with pytest.raises(ValueError, match="clients must be at most 192, which it accepts, not 200"):
        measure([str(tiny_artifact)], Load(clients=(200,), prompt_tokens=8, new_tokens=8, rounds=1))


def test_no_two_texts_are_the_same() -> None:
    asked = [body for bodies in Load().requests("m", 8) for body in bodies]
    assert len(set(asked)) == len(asked) == 8 * REQUESTS
