"""`python -m service` as a real process: start, refusal, stop."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from tests.service.conftest import sample, wait_until

REPOSITORY = Path(__file__).parents[2]


def without_settings() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("TTGPT_")}


@contextmanager
def process(*arguments: object, prefix: Sequence[str] = (), **environment: str) -> Iterator["subprocess.Popen[str]"]:
    command = [*prefix, sys.executable, "-W", "error", "-m", "service", *map(str, arguments)]
    env = without_settings() | environment
    with subprocess.Popen(command, cwd=REPOSITORY, env=env, stderr=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


def outcome(*arguments: object, **environment: str) -> tuple[int, list[str]]:
    with process(*arguments, **environment) as child:
        errors = child.communicate(timeout=120)[1]
    return child.returncode, errors.splitlines()


def address(child: "subprocess.Popen[str]") -> str:
    assert child.stderr is not None
    return str(json.loads(child.stderr.readline())["url"])


def test_sigterm_finishes_what_runs_and_exits_0(artifacts: list[Path]) -> None:
    body = {"inputs": "The sea", "parameters": {"max_new_tokens": 60}}
    statuses: list[int] = []

    def ask(url: str) -> None:
        with suppress(httpx.TransportError):  # came too late to be accepted
            statuses.append(httpx.post(f"{url}/generate", json=body, timeout=60).status_code)

    with process(artifacts[0], "--port", 0, TTGPT_MAX_BATCH="1") as child:
        url = address(child)
        wait_until(lambda: httpx.get(f"{url}/readyz", timeout=60).status_code == 200)
        others = [threading.Thread(target=ask, args=[url]) for _ in range(4)]
        with httpx.stream("POST", f"{url}/generate_stream", json=body, timeout=60) as answer:
            pieces = answer.iter_text()
            streamed = next(pieces)
            for other in others:
                other.start()
            child.send_signal(signal.SIGTERM)
            streamed += "".join(pieces)
        for other in others:
            other.join()
        errors = child.communicate(timeout=60)[1]
    assert child.returncode == 0
    assert '"finish_reason":"length"' in streamed
    assert set(statuses) <= {200, 503}  # refused, if it came after the signal
    assert "Traceback" not in errors
    assert "The sea" not in errors


def test_sigterm_ends_a_start_that_hangs(artifacts: list[Path], tmp_path: Path) -> None:
    slow = "class Slow:\n    def __getattr__(self, name): time.sleep(3600)"
    (tmp_path / "sitecustomize.py").write_text(f"import time, tokenizers\n{slow}\ntokenizers.Tokenizer = Slow()")
    with process(artifacts[0], "--port", 0, PYTHONPATH=f"{tmp_path}:{REPOSITORY}") as child:
        url = address(child)
        wait_until(lambda: httpx.get(f"{url}/startupz").json() == {"status": "loading"})
        child.send_signal(signal.SIGTERM)
        assert child.wait(timeout=30) == 0


def test_a_library_that_panics_while_loading_ends_the_process(artifacts: list[Path], tmp_path: Path) -> None:
    panics = "class Panic(BaseException): pass\ndef panic(*_): raise Panic\nload.load = panic"
    (tmp_path / "sitecustomize.py").write_text(f"from compressor.runtime import load\n{panics}")
    with process(artifacts[0], "--port", 0, PYTHONPATH=f"{tmp_path}:{REPOSITORY}") as child:
        errors = child.communicate(timeout=120)[1]
    assert child.returncode == 1
    assert "Panic" in errors


def test_a_process_that_serves_holds_nothing_of_what_builds(artifacts: list[Path]) -> None:
    with process(artifacts[0], artifacts[1], "--port", 0) as child:
        url = address(child)
        wait_until(lambda: httpx.get(f"{url}/readyz", timeout=60).status_code == 200)
        body = {"inputs": "The sea", "parameters": {"max_new_tokens": 2, "do_sample": True}}
        assert httpx.post(f"{url}/generate", json=body, timeout=60).status_code == 200
        mapped = Path(f"/proc/{child.pid}/maps").read_text()
    files = {line.split(maxsplit=5)[5] for line in mapped.splitlines() if len(line.split(maxsplit=5)) == 6}
    assert any("_decoder" in file for file in files)
    assert not [file for file in files if any(name in file for name in ("torch", "transformers", "matplotlib", "gomp"))]


def test_a_damaged_artefact_ends_the_process(artifacts: list[Path], tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(artifacts[0], damaged)
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    code, errors = outcome(artifacts[1], damaged, "--port", 0, TTGPT_LOG_LEVEL="error")
    assert code == 2
    assert len(errors) == 1
    assert f"{weights}: sha256" in errors[0]


@pytest.mark.parametrize(
    ("arguments", "environment", "hint"),
    [
        (["missing"], {}, "missing"),
        ([], {}, "TTGPT_MODELS"),
        (["x", "--port", "70000"], {}, "TTGPT_PORT"),
        (["x"], {"TTGPT_MAX_BATCH": "0"}, "max_batch"),
        (["x"], {"TTGPT_LOG_LEVEL": "loud"}, "log_level"),
        (["x"], {"TTGPT_KV_DTYPE": "int8"}, "kv_dtype"),
    ],
)
def test_bad_arguments(arguments: list[str], environment: dict[str, str], hint: str) -> None:
    code, errors = outcome("--port", 0, *arguments, **{"TTGPT_LOG_LEVEL": "error", **environment})
    assert code == 2
    assert len(errors) == 1
    assert hint in errors[0]


def test_a_kv_cache_without_room_for_a_text_is_refused(artifacts: list[Path]) -> None:
    code, errors = outcome(artifacts[0], "--port", 0, TTGPT_LOG_LEVEL="error", TTGPT_KV_BYTES="1000")
    assert (code, len(errors)) == (2, 1)
    assert " 1,000 " in errors[0]
    assert "raise TTGPT_KV_BYTES to " in errors[0]


def test_a_draft_without_a_model_is_refused(artifacts: list[Path]) -> None:
    code, errors = outcome(artifacts[0], "--port", 0, "--draft", "tiny-fp32", TTGPT_LOG_LEVEL="error")
    assert (code, len(errors)) == (2, 1)
    assert "draft_model (TTGPT_DRAFT_MODEL, --draft)" in errors[0]


def test_a_port_in_use(artifacts: list[Path]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, errors = outcome(artifacts[0], "--port", taken.getsockname()[1])
    assert (code, len(errors)) == (2, 1)
    assert "--port" in errors[0]


def test_models_come_from_the_environment_too(artifacts: list[Path]) -> None:
    paths = os.pathsep.join(map(str, artifacts))
    chosen = {"TTGPT_MODELS": paths, "TTGPT_PORT": "0", "TTGPT_DEFAULT_MODEL": "tiny-int8"}
    with process(**chosen, TTGPT_THREADS="1") as child, httpx.Client(base_url=address(child), timeout=60) as client:
        wait_until(lambda: client.get("/readyz").status_code == 200)
        assert client.get("/v1/models").json()["data"][0]["id"] == "tiny-int8"
        assert sample(client, "ttgpt_compute_threads") == 1


def test_the_service_imports_nothing_of_the_build() -> None:
    build_only = ("transformers", "compressor.methods", "compressor.huggingface")
    script = f"import sys, service.http.app; print([m for m in sys.modules if m.startswith({build_only})])"
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
