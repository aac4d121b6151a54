"""What one client can do to its connection: nothing to the next request, to the others or to the process."""

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.service.conftest import sample, wait_until
from tests.service.raw import LAST, TOKENIZE, Raw, chunked, request, statuses
from tests.service.test_process import address, process

SIZED = f"content-length: {len(TOKENIZE)}"
CHUNKED = "transfer-encoding: chunked"
GENERATE = b'{"inputs":"The sea","parameters":{"max_new_tokens":50}}'
WAITING = request("/generate", f"content-length: {1 << 20}")


@pytest.fixture(scope="module")
def server(artifacts: list[Path]) -> Iterator[tuple[str, int]]:
    """A process with short deadlines and few places: its URL and its id."""
    short = {"TTGPT_HEAD_SECONDS": "3", "TTGPT_BODY_SECONDS": "3", "TTGPT_MAX_CONNECTIONS": "48"}
    with process(artifacts[0], "--port", 0, TTGPT_BODIES_BYTES=str(3 << 20), **short) as child:
        url = address(child)
        wait_until(lambda: httpx.get(f"{url}/readyz", timeout=60).status_code == 200)
        yield url, child.pid


@pytest.fixture
def url(server: tuple[str, int]) -> str:
    return server[0]


def rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


UPGRADES = {
    "h2c": ("connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings: AAMAAABkAAQCAAAAAAIAAAAA"),
    "websocket": ("Connection: keep-alive, Upgrade", "Upgrade: websocket", "sec-websocket-version: 13"),
    "last": ("connection: close, upgrade", "upgrade: h2c"),
    "twice": ("connection: upgrade", "upgrade: h2c", "upgrade: foo/2"),
}


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("framing", ["content-length", "chunked"])
@pytest.mark.parametrize("offer", UPGRADES)
def test_an_upgrade_is_ignored(url: str, offer: str, framing: str, version: str) -> None:
    how = SIZED if framing == "content-length" else CHUNKED
    body = TOKENIZE if framing == "content-length" else chunked(TOKENIZE)
    with Raw(url) as raw:
        raw.send(request("/tokenize", *UPGRADES[offer], how, body=body, version=version) + LAST)
        answers = raw.rest()
    if offer == "last" and version == "1.1":
        assert statuses(answers) == [200]
    elif version == "1.0":  # ends with its first answer
        assert statuses(answers) == ([200] if framing == "content-length" else [400])
    else:
        assert statuses(answers) == [200, 200]
        assert b'"text":"x"' in answers


@pytest.mark.parametrize("piece", [1, 7, 100])
def test_a_body_behind_an_upgrade_is_no_request(url: str, piece: int) -> None:
    """However it is cut; the smuggled request would be a third answer."""
    inner = request("/info", method="GET")
    sent = request("/tokenize", *UPGRADES["h2c"], f"content-length: {len(inner)}", body=inner) + LAST
    with Raw(url) as raw:
        for start in range(0, len(sent), piece):
            raw.send(sent[start : start + piece])
        assert statuses(raw.rest()) == [422, 200]


AMBIGUOUS = {
    "length and chunks": request("/tokenize", SIZED, CHUNKED, body=chunked(TOKENIZE)),
    "chunks and length": request("/tokenize", CHUNKED, SIZED, body=chunked(TOKENIZE)),
    "two lengths": request("/tokenize", SIZED, "content-length: 0", body=TOKENIZE),
    "one length twice": request("/tokenize", SIZED, SIZED, body=TOKENIZE),
    "a list of lengths": request("/tokenize", f"{SIZED}, {len(TOKENIZE)}", body=TOKENIZE),
    "a signed length": request("/tokenize", "content-length: +14", body=TOKENIZE),
    "a space before the colon": request("/tokenize", "content-length : 14", body=TOKENIZE),
    "a folded header": request("/tokenize", "x-folded: a\r\n b", SIZED, body=TOKENIZE),
    "a folded coding": request("/tokenize", "transfer-encoding:\r\n chunked", body=chunked(TOKENIZE)),
    "bare line feeds": request("/tokenize", SIZED, body=TOKENIZE).replace(b"\r\n", b"\n"),
    "a bare line feed": request("/tokenize", f"x-a: b\n{SIZED}", body=TOKENIZE),
    "a bare return": request("/tokenize", f"x-a: b\r{SIZED}", body=TOKENIZE),
    "a zero byte": request("/tokenize", "x-a: \0", SIZED, body=TOKENIZE),
    "chunks in HTTP/1.0": request("/tokenize", CHUNKED, body=chunked(TOKENIZE), version="1.0"),
    "HTTP/2.0": request("/tokenize", SIZED, body=TOKENIZE, version="2.0"),
    "another coding": request("/tokenize", "transfer-encoding: xchunked", body=chunked(TOKENIZE)),
    "two codings": request("/tokenize", "transfer-encoding: gzip, chunked", body=chunked(TOKENIZE)),
    "chunks twice": request("/tokenize", CHUNKED, CHUNKED, body=chunked(TOKENIZE)),
    "a line feed in a chunk": request("/tokenize", CHUNKED, body=b"e;a\nb\r\n" + TOKENIZE + b"\r\n0\r\n\r\n"),
    "chunks with line feeds": request("/tokenize", CHUNKED, body=chunked(TOKENIZE).replace(b"\r\n", b"\n")),
    "a chunk of another size": request("/tokenize", CHUNKED, body=b"d\r\n" + TOKENIZE + b"\r\n0\r\n\r\n"),
    "CONNECT": request("/livez", method="CONNECT"),
    "CONNECT with a body": request("x:443", SIZED, body=TOKENIZE, method="CONNECT"),
    "HTTP/2's beginning": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no HTTP": b"\x16\x03\x01\x02\x00\x01",
}


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_what_may_be_read_in_two_ways_is_refused_once(url: str, case: str) -> None:
    with Raw(url) as raw:
        raw.send(AMBIGUOUS[case] + LAST)
        answers = raw.rest()
    assert statuses(answers) == [400]
    assert b'"error_type": "validation"' in answers


def test_chunk_extensions_are_skipped(url: str) -> None:
    extended = chunked(TOKENIZE).replace(b"e\r\n", b"e;name=value\r\n")
    with Raw(url) as raw:
        raw.send(request("/tokenize", CHUNKED, body=extended) + LAST)
        assert statuses(raw.rest()) == [200, 200]


def test_a_trailer_is_no_header(url: str) -> None:
    trailed = chunked(TOKENIZE)[:-2] + b"x-request-id: from-a-trailer\r\n\r\n"
    with Raw(url) as raw:
        raw.send(request("/tokenize", CHUNKED, body=trailed) + LAST)
        answers = raw.rest()
    assert statuses(answers) == [200, 200]
    assert b"from-a-trailer" not in answers


@pytest.mark.parametrize("endless", [b"e;" + b"a" * (1 << 20), b"0\r\nx-endless: " + b"a" * (1 << 20)])
def test_what_stands_between_chunks_is_bounded(url: str, endless: bytes) -> None:
    with Raw(url) as raw:
        raw.send(request("/tokenize", CHUNKED, body=endless))
        assert statuses(raw.rest()) in ([400], [])  # reset before it was read


def test_garbage_behind_a_request_does_not_cut_its_answer(url: str) -> None:
    sized = f"content-length: {len(GENERATE)}"
    with Raw(url) as raw:
        raw.send(request("/generate", sized, body=GENERATE) + b"\0garbage\r\n\r\n")
        answers = raw.rest()
    assert statuses(answers) == [200]
    assert b"generated_text" in answers


def test_requests_sent_ahead_are_answered_in_order_and_bounded(url: str) -> None:
    few = request("/livez", method="GET") * 10 + request("/tokenize", SIZED, body=TOKENIZE)
    with Raw(url) as raw:
        raw.send(few + LAST)
        assert statuses(raw.rest()) == [200] * 12
    with Raw(url) as raw:
        raw.send(b"GET /livez HTTP/1.1\r\n\r\n" * 3000)
        assert len(statuses(raw.rest())) < 1000


def test_half_a_head_has_a_deadline(url: str) -> None:
    with Raw(url) as half, Raw(url) as silent, Raw(url) as blank:
        half.send(b"GET /livez HTTP/1.1\r\nhost:")
        blank.send(b"\r\n\r\n")
        assert statuses(half.rest()) == [408]
        assert silent.rest() == blank.rest() == b""


def test_so_has_one_behind_an_answer(url: str) -> None:
    with Raw(url) as raw:
        raw.send(request("/livez", method="GET") + b"GET /livez HT")
        assert statuses(raw.rest()) == [200, 408]


def test_a_head_that_trickles_has_no_longer(url: str) -> None:
    """Every byte in time, and yet not the head."""
    with Raw(url) as raw:
        raw.send(b"GET /livez HTTP/1.1\r\n")
        began = time.monotonic()
        while not (answer := _received(raw)) and time.monotonic() < began + 30:
            raw.send(b"x-a: b\r\n")
            time.sleep(0.2)
        assert statuses(answer) == [408]


def _received(raw: Raw) -> bytes:
    raw.socket.setblocking(False)
    try:
        return raw.socket.recv(1 << 16)
    except BlockingIOError:
        return b""
    finally:
        raw.socket.settimeout(60)


@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
@pytest.mark.parametrize("how", [f"content-length: {1 << 20}", CHUNKED])
def test_half_a_body_has_a_deadline(url: str, path: str, how: str) -> None:
    with Raw(url) as raw:
        raw.send(request(path, how, body=b"5\r\n     \r\n"))
        answer = raw.rest()
    assert statuses(answer) == [408]
    assert b"did not come within 3 seconds" in answer
    assert (b'"message"' in answer) == path.startswith("/v1")


def test_a_slow_body_in_time_is_served(url: str) -> None:
    with Raw(url) as raw:
        raw.send(request("/tokenize", SIZED, "connection: close"))
        for byte in TOKENIZE:
            raw.send(bytes([byte]))
            time.sleep(0.05)
        assert statuses(raw.rest()) == [200]


def test_bodies_in_flight_are_bounded(url: str) -> None:
    """Three of 1 MiB fill the place; small ones are served all the same, and probes."""
    with ExitStack() as stack, httpx.Client(base_url=url, timeout=60) as client:
        before = sample(client, "ttgpt_requests_rejected_total", reason="queue_bytes")
        held = [stack.enter_context(Raw(url)) for _ in range(12)]
        for raw in held:
            raw.send(WAITING + b" " * ((1 << 20) - 1))
        assert client.get("/livez").status_code == 200
        assert client.post("/tokenize", content=TOKENIZE, headers={"content-type": "application/json"}).is_success
        answers = [raw.answer() for raw in held]
        refused = [answer for answer in answers if statuses(answer) == [503]]
        assert len(refused) == 9
        assert all(b"retry-after: 1" in answer for answer in refused)
        assert sample(client, "ttgpt_requests_rejected_total", reason="queue_bytes") == before + 9
        assert statuses(b"".join(answers)).count(408) == 3
        chunks = [stack.enter_context(Raw(url)) for _ in range(6)]  # whose length is not known before
        for raw in chunks:
            raw.send(request("/generate", CHUNKED, body=b"%x\r\n" % (1 << 20) + b" " * ((1 << 20) - 1)))
        assert 503 in statuses(b"".join(raw.answer() for raw in chunks))
        assert client.post("/tokenize", content=b" " * (1 << 19) + TOKENIZE).status_code == 422  # all is free again


def test_the_rest_of_a_refused_body_is_read(url: str) -> None:
    """So that the client gets to its answer, and may send its next request."""
    with Raw(url) as raw:
        raw.send(request("/tokenize", f"content-length: {3 << 20}"))
        assert statuses(raw.answer()) == [413]
        raw.send(b" " * (3 << 20) + LAST)
        assert statuses(raw.rest()) == [200]


def test_there_is_always_a_place_for_a_probe(url: str) -> None:
    """120 half requests, where 48 connections may be: those that have waited longest are gone."""
    with ExitStack() as stack:
        for number in range(120):
            raw = stack.enter_context(Raw(url))
            raw.send(b"GET /livez HTTP/1.1\r\nhost:" if number % 2 else WAITING)
            if number % 20 == 0:
                assert httpx.get(f"{url}/livez", timeout=10).status_code == 200
        assert httpx.get(f"{url}/livez", timeout=10).status_code == 200


def test_heads_are_bounded_in_memory(server: tuple[str, int]) -> None:
    """Many tiny headers take twenty times their bytes."""
    url, pid = server
    before = rss_bytes(pid)
    with ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(Raw(url)).send(b"GET / HTTP/1.1\r\n" + b"ab:cd\r\n" * 9000)
        assert httpx.get(f"{url}/livez", timeout=10).status_code == 200
        assert rss_bytes(pid) - before < 15e6


def test_an_answer_that_is_not_read_ends(artifacts: list[Path], tmp_path: Path) -> None:
    """On a unix socket, where the kernel keeps little of it; it holds nothing up for longer, not even the end."""
    body = b'{"inputs":[' + b",".join([b"1"] * 2000) + b"]}"
    with process(artifacts[0], "--uds", tmp_path / "socket", TTGPT_BODY_SECONDS="3") as child:
        url = address(child)
        wait_until(lambda: statuses(_asked(url, request("/readyz", "connection: close", method="GET"))) == [200])
        with Raw(url) as raw, Raw(url) as other:
            raw.send(request("/embeddings", f"content-length: {len(body)}", body=body))
            other.send(request("/embeddings", "connection: close", f"content-length: {len(body)}", body=body))
            assert other.rest().endswith(b"\r\n0\r\n\r\n")
            child.send_signal(signal.SIGTERM)
            assert "Traceback" not in child.communicate(timeout=60)[1]
            assert child.returncode == 0
            assert not raw.rest().endswith(b"\r\n0\r\n\r\n")


def _asked(url: str, sent: bytes) -> bytes:
    with Raw(url) as raw:
        raw.send(sent)
        return raw.rest()


def test_a_pause_between_requests_is_no_reason_to_close(url: str) -> None:
    """Proxies keep connections for a minute, and answer 502 where the server closes earlier."""
    with Raw(url) as raw:
        raw.send(request("/livez", method="GET"))
        time.sleep(6)
        raw.send(LAST)
        assert statuses(raw.rest()) == [200, 200]


def test_an_idle_connection_is_closed(artifacts: list[Path]) -> None:
    with process(artifacts[0], "--port", 0, TTGPT_KEEP_ALIVE_SECONDS="0.5") as child, Raw(address(child)) as raw:
        raw.send(request("/livez", method="GET"))
        assert statuses(raw.rest()) == [200]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_only_whole_requests_are_waited_for(artifacts: list[Path], number: signal.Signals) -> None:
    """12 are accepted, most of them queued; what has not come whole would hold the end up for ten minutes."""
    forever = dict.fromkeys(("TTGPT_HEAD_SECONDS", "TTGPT_BODY_SECONDS", "TTGPT_DRAIN_SECONDS"), "600")
    with process(artifacts[0], "--port", 0, TTGPT_MAX_BATCH="2", **forever) as child, ExitStack() as stack:
        url = address(child)
        wait_until(lambda: httpx.get(f"{url}/readyz", timeout=60).status_code == 200)
        half = [b"", b"GET /livez HT", WAITING, WAITING + b" " * 100_000, request("/livez", method="GET")]
        for sent in half * 4:
            stack.enter_context(Raw(url)).send(sent)
        pool = stack.enter_context(ThreadPoolExecutor(12))
        sized = f"content-length: {len(GENERATE)}"
        accepted = [stack.enter_context(Raw(url)) for _ in range(12)]
        for raw in accepted:
            raw.send(request("/generate", sized, body=GENERATE))
        answers = [pool.submit(raw.rest) for raw in accepted]
        with httpx.Client(base_url=url, timeout=60) as client:
            names = ("ttgpt_num_requests_waiting", "ttgpt_num_requests_running", "ttgpt_request_success_total")
            ended = {"finished_reason": "length"}
            wait_until(
                lambda: sum(sample(client, name, **(ended if "success" in name else {})) for name in names) == 12
            )
        child.send_signal(number)
        assert [statuses(answer.result(60)) for answer in answers] == [[200]] * 12
        errors = child.communicate(timeout=60)[1]
    assert child.returncode == 0
    assert [line for line in errors.splitlines() if '"event": "ready"' not in line] == []


def test_under_nohup_a_hang_up_is_ignored(artifacts: list[Path]) -> None:
    with process(artifacts[0], "--port", 0, prefix=["nohup"]) as child:
        url = address(child)
        child.send_signal(signal.SIGHUP)
        wait_until(lambda: httpx.get(f"{url}/readyz", timeout=60).status_code == 200)


def test_what_is_not_done_in_time_is_given_up_quietly(artifacts: list[Path]) -> None:
    body = {"inputs": "The sea", "parameters": {"max_new_tokens": 60}}
    answers: list[int] = []
    with process(artifacts[0], "--port", 0, TTGPT_MAX_BATCH="1", TTGPT_DRAIN_SECONDS="0") as child:
        url = address(child)
        wait_until(lambda: httpx.get(f"{url}/readyz", timeout=60).status_code == 200)

        def ask() -> None:
            """Asks on and on, so that requests wait whenever the signal comes."""
            answer = 200
            while answer == 200:
                try:
                    answer = httpx.post(f"{url}/generate", json=body, timeout=60).status_code
                except httpx.TransportError:
                    answer = 0
                answers.append(answer)

        askers = [threading.Thread(target=ask) for _ in range(20)]
        for asker in askers:
            asker.start()
        with httpx.Client(base_url=url, timeout=60) as client:
            wait_until(lambda: sample(client, "ttgpt_num_requests_waiting") > 3)
        child.send_signal(signal.SIGTERM)
        for asker in askers:
            asker.join()
        errors = child.communicate(timeout=60)[1]
    assert child.returncode == 0
    assert "Traceback" not in errors
    assert 503 in answers
    assert set(answers) <= {0, 200, 503}


def test_few_descriptors_are_enough(artifacts: list[Path]) -> None:
    """The hard limit leaves no more than 192 connections; 600 half heads do not keep a probe out."""
    limit = ["prlimit", "--nofile=256:256"]
    with process(artifacts[0], "--port", 0, prefix=limit) as child, ExitStack() as stack:
        url = address(child)
        wait_until(lambda: httpx.get(f"{url}/readyz", timeout=60).status_code == 200)
        for _ in range(600):
            stack.enter_context(Raw(url)).send(b"GET /livez HTTP/1.1\r\nhost:")
        assert httpx.get(f"{url}/livez", timeout=10).status_code == 200


def test_the_soft_limit_of_descriptors_is_raised(artifacts: list[Path]) -> None:
    with process(artifacts[0], "--port", 0, prefix=["prlimit", "--nofile=200:300"]) as child:
        address(child)
        limits = Path(f"/proc/{child.pid}/limits").read_text()
    found = re.search(r"Max open files +(\d+) +(\d+)", limits)
    assert found is not None
    assert found.groups() == ("300", "300")
