"""What becomes of a service in a pod's memory whose clients send what no decent client would."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.load import percentile_ms
from tests.e2e.replica import Replica, limited_replica

MIB = 1 << 20
PATIENCE_SECONDS = 30.0
PROBE_SECONDS = 0.02  # between two probes
TEXT = "The old man looked at the sea"


def costly() -> dict[str, tuple[str, bytes]]:
    """Return bodies of up to 1 MiB that are refused, or should be, each with its route."""

    def body(route: str, value: Any) -> tuple[str, bytes]:
        return route, json.dumps(value, separators=(",", ":")).encode()

    many = {f"k{i}": 1 for i in range(60_000)}
    return {
        "348,160 wrong ids": body("/embeddings", {"inputs": [[-1] * 2048] * 170}),
        "60,000 unknown fields": body("/generate", {"inputs": TEXT} | many),
        "60,000 unknown parameters": body("/generate", {"inputs": TEXT, "parameters": many}),
        "a field's name of 900 kB": body("/generate", {"inputs": TEXT, "x" * 900_000: 1}),
        "a model's name of 900 kB": body("/generate", {"inputs": TEXT, "model": "x" * 900_000}),
        "200,000 stop strings": body("/generate", {"inputs": TEXT, "parameters": {"stop": [""] * 200_000}}),
        "200,000 prompts": body("/v1/completions", {"prompt": [0] * 3 + ["x"] * 200_000}),
        "brackets, 500,000 deep": ("/generate", b"[" * 500_000 + b"]" * 500_000),
        "a number of a million digits": ("/generate", b'{"inputs":' + b"9" * 1_000_000 + b"}"),
        "170 texts of 6,000 characters": body("/embeddings", {"inputs": ["w " * 3000] * 170}),
    }


def invalid(model: Path, folder: Path) -> dict[str, Any]:
    """Send every costly body twice to a service in a pod's memory; return the figures.

    Asserted are: each is refused or answered, none with 5xx, and the process lives.
    """
    with limited_replica([model], folder / "invalid.log") as service:
        begin = service.rss_mb()
        cases: dict[str, dict[str, Any]] = {}
        for name, (route, body) in costly().items():
            with probes(service.url) as waits:
                statuses = [_post(service, route, body) for _ in range(2)]
            cases[name] = {"status": statuses[-1], "slowest_probe_ms": percentile_ms(waits, 1.0)}
        alive, peak = service.process.poll() is None, service.peak_rss_mb()
        figures: dict[str, Any] = {
            "pod_mib": service.pod and service.pod.mib,
            "alive": alive,
            "rss_mb_begin": round(begin, 1),
            "rss_mb_peak": peak,
        }
        figures |= {"slowest_probe_ms": max(case["slowest_probe_ms"] for case in cases.values()), "cases": cases}
        assert alive, figures
        assert all(200 <= case["status"] < 500 for case in cases.values()), figures
        assert service.tracebacks() == 0
        return figures


def scoring(model: Path, folder: Path, prompts: int = 32) -> dict[str, Any]:
    """Score as many prompts as one request may have, in a pod's memory and beside a stream; return the figures.

    `gap_ms` is the longest time between two tokens of the stream. Asserted are: all are scored, and the process lives.
    """
    config = json.loads((model / "config.json").read_text())
    length, vocabulary = config["n_positions"] - 1, config["vocab_size"]
    ids = [[(7 * i + 31 * j) % vocabulary for i in range(length)] for j in range(prompts)]
    scored = {"prompt": ids, "max_tokens": 0, "echo": True, "logprobs": 1}
    read = {"prompt": ids, "max_tokens": 1}
    with limited_replica([model], folder / "scoring.log") as service:
        begin = service.rss_mb()
        alone = _beside_a_stream(service, read)
        found = _beside_a_stream(service, scored)
        alive, peak = service.process.poll() is None, service.peak_rss_mb()
        figures: dict[str, Any] = {
            "pod_mib": service.pod and service.pod.mib,
            "alive": alive,
            "prompts": prompts,
            "tokens": length,
        }
        figures |= {
            "rss_mb_begin": round(begin, 1),
            "rss_mb_peak": peak,
            "beside_prompts": alone,
            "beside_scoring": found,
        }
        assert alive, figures
        assert (alone["status"], found["status"]) == (200, 200), figures
        assert service.tracebacks() == 0
        return figures


def half_sent(model: Path, folder: Path, bodies: int = 390, heads: int = 1100) -> dict[str, Any]:
    """Leave bodies and heads half sent, in a pod's memory; return the figures.

    Asserted are: the process lives, probes are answered meanwhile, and SIGTERM does not wait for what never came whole.
    """
    with limited_replica([model], folder / "half-sent.log") as service:
        begin = service.rss_mb()
        head = b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        with probes(service.url) as beside_bodies, _opened(service, bodies, head % MIB + b" " * (MIB - 1)):
            time.sleep(2)
        alive, peak = service.process.poll() is None, service.peak_rss_mb()
        with probes(service.url) as beside_heads, _opened(service, heads, b"POST /generate HTTP/1.1\r\nhost: x\r\nx-"):
            time.sleep(2)
        with _opened(service, 10, head % MIB + b" " * 1000):
            time.sleep(0.2)
            began = time.monotonic()
            service.terminate()
            code = service.process.wait(timeout=PATIENCE_SECONDS + 120)
            stopped = time.monotonic() - began
        figures = {
            "pod_mib": service.pod and service.pod.mib,
            "alive": alive,
            "bodies": bodies,
            "heads": heads,
            "rss_mb_begin": round(begin, 1),
            "rss_mb_peak": peak,
            "slowest_probe_ms_bodies": percentile_ms(beside_bodies, 1.0),
            "slowest_probe_ms_heads": percentile_ms(beside_heads, 1.0),
            "stop_seconds": round(stopped, 2),
        }
        assert (alive, code) == (True, 0), figures
        assert max(*beside_bodies, *beside_heads) < PATIENCE_SECONDS, figures
        assert service.tracebacks() == 0
        return figures


@contextmanager
def probes(url: str) -> Iterator[list[float]]:
    """Ask /livez again and again during the block; collect the seconds of each, `PATIENCE_SECONDS` if refused."""
    waits: list[float] = []
    ended = threading.Event()

    def probe() -> None:
        while not ended.is_set():
            began = time.monotonic()
            try:
                answered = httpx.get(f"{url}/livez", timeout=PATIENCE_SECONDS, verify=False).is_success  # noqa: S501
            except httpx.TransportError:
                answered = False
            waits.append(time.monotonic() - began if answered else PATIENCE_SECONDS)
            ended.wait(PROBE_SECONDS)

    thread = threading.Thread(target=probe)
    thread.start()
    try:
        yield waits
    finally:
        ended.set()
        thread.join()


def _post(service: Replica, route: str, body: bytes) -> int:
    """Return the status of an answer, 0 if there was none."""
    headers = {"content-type": "application/json"}
    try:
        return httpx.post(f"{service.url}{route}", content=body, headers=headers, timeout=PATIENCE_SECONDS).status_code
    except httpx.TransportError:
        return 0


def _beside_a_stream(service: Replica, body: dict[str, Any]) -> dict[str, Any]:
    """Ask while streams are read one after another; return status, seconds and the streams' longest gap."""
    gaps: list[float] = []
    ended = threading.Event()

    def read() -> None:
        streamed = {"inputs": TEXT, "parameters": {"max_new_tokens": 100}}
        with suppress(httpx.TransportError):
            while not ended.is_set():
                with httpx.stream("POST", f"{service.url}/generate_stream", json=streamed, timeout=120) as answer:
                    at = None
                    for line in answer.iter_lines():
                        if line.startswith("data:"):
                            now = time.monotonic()
                            gaps.extend([now - at] if at is not None else [])
                            at = now

    thread = threading.Thread(target=read)
    thread.start()
    time.sleep(0.3)
    gaps.clear()
    began = time.monotonic()
    try:
        status = httpx.post(f"{service.url}/v1/completions", json=body, timeout=300).status_code
    except httpx.TransportError:
        status = 0
    seconds = time.monotonic() - began
    ended.set()
    thread.join()
    return {"status": status, "seconds": round(seconds, 2), "gap_ms": percentile_ms(gaps, 1.0)}


@contextmanager
def _opened(service: Replica, count: int, data: bytes) -> Iterator[None]:
    """Hold so many connections open during the block, each of which has sent `data` as far as it was taken."""
    connections: list[socket.socket] = []
    try:
        for _ in range(count):
            with suppress(OSError):
                connection = socket.create_connection(("127.0.0.1", service.port), timeout=1)
                connections.append(connection)
                connection.sendall(data)
        yield
    finally:
        for connection in connections:
            connection.close()
