"""The real service as a real process, and the clients that load it."""

import json
import shutil
import sys
import time
import urllib.request
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from compressor.bench import service
from compressor.bench.memory import peak_rss_bytes, rss_bytes
from compressor.bench.service import Service
from tests.benchmarks import children
from tests.benchmarks.plan import PROMPT, Plan

LOAD_SCRIPT = Path(__file__).parent / "load.js"
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


def served(artifact: Path, seconds: float, **settings: str) -> AbstractContextManager[tuple[Service, str]]:
    """Serve one artefact, with settings as environment variables, see `compressor.bench.service.served`."""
    return service.served(artifact, seconds, children.environment() | settings)


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
