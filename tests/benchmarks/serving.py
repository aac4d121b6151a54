"""The real service as a real process, and the clients that load it."""

import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tests.benchmarks import children
from tests.benchmarks.memory import peak_rss_bytes, rss_bytes
from tests.benchmarks.plan import PROMPT, Plan

LOAD_SCRIPT = Path(__file__).parent / "load.js"
POLL_SECONDS = 0.02
STREAMS = 8  # beside which a long prompt arrives


def measure(artifact: Path, plan: Plan, threads: int) -> dict[str, Any]:
    """Return one sample of the service with this artefact."""
    with served(artifact, plan.seconds, TTGPT_MAX_BATCH=str(max(plan.clients))) as (process, url):
        ask(url, body(1))
        sample: dict[str, Any] = {"start_seconds": time.monotonic() - process.started, "load": {}, "stream": {}}
        for clients in plan.clients:
            check_length(url, plan.new_tokens)
            sample["load"][str(clients)] = load(url, plan, clients)
            sample["stream"][str(clients)] = stream(url, plan, clients, threads)
            sample.setdefault("rss_bytes", rss_bytes(process.pid))  # after one client
        sample["peak_rss_bytes"] = peak_rss_bytes(process.pid)
    with served(artifact, plan.seconds, TTGPT_MAX_BATCH=str(STREAMS + 1)) as (_, url):
        return sample | {"arrival": arrival(url, artifact, plan, threads)}


class Service(subprocess.Popen[bytes]):
    """`python -m service`, which is what `ttgpt serve` becomes. Its log goes to a file.

    Attributes:
        started: when, on the monotonic clock.
    """

    def __init__(self, artifact: Path, log: Path, **settings: str) -> None:
        self.started = time.monotonic()
        command = [sys.executable, "-m", "service", str(artifact), "--port", "0"]
        with log.open("wb") as output:
            super().__init__(command, cwd=children.ROOT, env=children.environment() | settings, stderr=output)


@contextmanager
def served(artifact: Path, seconds: float, **settings: str) -> Iterator[tuple[Service, str]]:
    """Serve one artefact, with settings as environment variables; gives the process and the address, once it is ready.

    Raises:
        RuntimeError: if the service does not become ready within `seconds`.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "service.log"
        with Service(artifact, log, **settings) as process:
            try:
                yield process, _ready(process, log, time.monotonic() + seconds)
            finally:
                process.terminate()
                process.wait()


def _ready(process: Service, log: Path, deadline: float) -> str:
    url = ""
    while time.monotonic() < deadline and process.poll() is None:
        lines = log.read_text().splitlines(keepends=True)
        if not url and lines and lines[0].endswith("\n"):
            url = str(json.loads(lines[0])["url"])
        if url and _is_ready(url):
            return url
        time.sleep(POLL_SECONDS)
    reasons = log.read_text().strip().splitlines() or ["it said nothing"]
    raise RuntimeError(f"the service did not become ready: {reasons[-1]}")


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=5) as answer:  # noqa: S310  # our own process
            return bool(answer.status == 200)
    except OSError:  # not listening yet, or too busy to answer
        return False


def body(new_tokens: int, prompt: str = PROMPT, **parameters: object) -> str:
    """Return the JSON that every client sends."""
    return json.dumps({"inputs": prompt, "parameters": {"max_new_tokens": new_tokens, **parameters}})


def text_of(tokenizer: Tokenizer, tokens: int) -> str:
    """Return a text of so many tokens."""
    ids = tokenizer.encode(f"{PROMPT}. " * tokens).ids[: tokens + 1]
    while len(tokenizer.encode(text := tokenizer.decode(ids)).ids) > tokens:
        ids.pop()
    return str(text)


def ask(url: str, content: str, seconds: float = 300) -> dict[str, Any]:
    """Return the answer to one request, which may take so long."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/generate", content.encode(), headers)  # noqa: S310
    with urllib.request.urlopen(request, timeout=seconds) as answer:  # noqa: S310
        result: dict[str, Any] = json.load(answer)
    return result


def check_length(url: str, new_tokens: int) -> None:
    """Make sure that the greedy answer, the same for all clients, is as long as was asked for.

    Raises:
        RuntimeError: if it ends early, so that counted requests would not be counted tokens.
    """
    length = ask(url, body(new_tokens, details=True))["details"]["generated_tokens"]
    if length != new_tokens:
        raise RuntimeError(f"{new_tokens} tokens were asked for, {length} came")


def load(url: str, plan: Plan, clients: int) -> dict[str, Any]:
    """Return tokens per second of k6's clients, which wait for whole answers, or why there are none."""
    k6 = shutil.which("k6", path=f"{Path(sys.executable).parent}") or shutil.which("k6")
    if k6 is None:
        return {"absent": "k6 is not installed"}
    variables = {"URL": url, "BODY": body(plan.new_tokens), "CLIENTS": str(clients), "REQUESTS": str(plan.requests)}
    command = [k6, "run", "--quiet", "--no-usage-report", str(LOAD_SCRIPT)]
    result = children.parsed(command, children.environment() | variables, plan.seconds)
    if "failed" in result:
        return result
    if result["refused"]:
        return {"failed": f"{result['refused']} of {result['answers']} requests were refused"}
    return {"tokens_per_s": result["answers"] * plan.new_tokens / result["milliseconds"] * 1e3}


def stream(url: str, plan: Plan, clients: int, threads: int) -> dict[str, Any]:
    """Return tokens per second and latencies of clients that read streams."""
    arguments = ["--body", body(plan.new_tokens), "--clients", clients, "--requests", plan.requests]
    arguments += ["--new-tokens", plan.new_tokens]
    return children.run("streams", url, *arguments, threads=threads, seconds=plan.seconds)


def arrival(url: str, artifact: Path, plan: Plan, threads: int) -> dict[str, Any]:
    """Return the latencies of STREAMS streams before and while a long prompt is read, see `streams.beside`."""
    ask(url, body(1))
    long = text_of(Tokenizer.from_file(str(artifact / "tokenizer.json")), plan.arriving_tokens)
    room = plan.config.n_positions - plan.prompt_tokens
    arguments = ["--body", body(room), "--clients", STREAMS, "--requests", 1, "--new-tokens", room]
    arguments += ["--arriving", body(1, long), "--after", plan.arriving_seconds]
    return children.run("streams", url, *arguments, threads=threads, seconds=plan.seconds)
